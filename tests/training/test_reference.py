"""The second stream of images, and fixed views: what a step sees beside the task's batch."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from dataset_copies import picture

from riftcli import recipe as recipes
from riftcli.console import Console
from riftcli.models.classifier import Classifier, frozen_copy
from riftcli.training.setup import set_up

CLOTHES = {"format": "demo_fashion", "split": {"from": "test", "limit": 70}, "batch_size": 24}
ON_REFERENCE = {"name": "feature_distill", "on": "reference"}


def built(path: Path, *overrides: str):
    return set_up(recipes.load(str(path), list(overrides)), torch.device("cpu"), Console(quiet=True))


def test_the_second_stream_goes_round_its_own_images_and_from_any_step(tiny_recipe, write_recipe):
    tiny_recipe |= {"regularizer": ON_REFERENCE, "reference": CLOTHES}
    setup = built(write_recipe(tiny_recipe))
    assert len(setup.data.reference) == 70
    stream = setup.beside(0)
    index = [next(stream)["reference"][2] for _ in range(7)]  # 2 whole batches of 24 an epoch
    for first in (0, 2, 4):
        assert len(set(torch.cat(index[first : first + 2]).tolist())) == 48
    assert not torch.equal(index[0], index[2])
    for step in (1, 3, 6):
        later = next(setup.beside(step))["reference"]
        assert torch.equal(later[2], index[step])
    task = setup.batches.positions(0)[0]
    assert task[:24] != index[0].tolist()


def test_a_regularizer_keeps_the_reference_images_and_not_the_tasks(rift, tiny_recipe, write_recipe, tiny_weights):
    """With a strong pull on clothes, their features stay, while those of the digits move."""
    from riftcli.functional.cka import cka

    tiny_recipe["optim"] = {"lr": 3e-3}
    tiny_recipe["train"]["epochs"] = 4
    tiny_recipe |= {"regularizer": {**ON_REFERENCE, "strength": 30.0}, "reference": CLOTHES}
    path = write_recipe(tiny_recipe)
    assert rift("finetune", "--recipe", path, "--out", "kept")[0] == 0
    free = ["--set", "regularizer.name=none", "--set", "reference=null"]
    assert rift("finetune", "--recipe", path, "--out", "free", *free)[0] == 0
    setup = built(path)
    before = setup.predict(setup.data.reference).features
    kept = {}
    for run in ("kept", "free"):
        from safetensors.torch import load_file

        setup.network.vit.load_state_dict(load_file(f"{run}/model/model.safetensors"))
        kept[run] = cka(before, setup.predict(setup.data.reference).features)
    assert kept["kept"] > 0.95
    assert 1 - kept["kept"] < 0.6 * (1 - kept["free"])
    rows = [json.loads(line) for line in Path("kept/metrics.jsonl").read_text().splitlines()]
    assert all("batch_cka" in row for row in rows if row["kind"] == "step")
    record = json.loads(Path("kept/run.json").read_text())
    assert record["status"] == "completed"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"regularizer": ON_REFERENCE},
            "recipe tiny.yaml:{on}: regularizer.on: 'reference' needs the images: name them below `reference:`, "
            "e.g. {{format: image_folder, root: ...}}",
        ),
        (
            {"reference": CLOTHES},
            "recipe tiny.yaml:{reference}: reference: has no effect: only a regularizer with `on: reference` looks at these "
            "images",
        ),
        (
            {"regularizer": ON_REFERENCE, "reference": {**CLOTHES, "batch_size": 1}},
            "recipe tiny.yaml:{batch_size}: reference.batch_size: expected a whole number of 2 or more, or null, got 1",
        ),
        (
            {"regularizer": ON_REFERENCE, "reference": {"format": "demo_fashion", "split": {"fraction": 0.5}}},
            "recipe tiny.yaml:{split}: reference.split: only data.val can be a part of another split",
        ),
        (
            {"regularizer": ON_REFERENCE, "reference": {**CLOTHES, "batch_size": 100}},
            "70 reference samples do not fill one batch of reference.batch_size 100; use --set reference.batch_size=70 or less",
        ),
        (
            {
                "regularizer": ON_REFERENCE,
                "reference": {**CLOTHES, "batch_size": 9},
                "train": {"micro_batch_size": 16, "batch_size": 32},
            },
            "recipe tiny.yaml:{batch_size}: reference.batch_size: 9 does not divide into the steps of train.micro_batch_size",
        ),
        (
            {"regularizer": ON_REFERENCE, "reference": {"format": "digits", "split": {"from": "test", "limit": 60}}},
            "splits 'reference test' and 'test' share 60 samples",
        ),
        (
            {
                "regularizer": ON_REFERENCE,
                "reference": {**CLOTHES, "split": "test"},
                "retention": [{"format": "demo_fashion", "test": {"from": "test", "limit": 30}, "train": "test"}],
            },
            "share 30 samples",
        ),
        (
            {"regularizer": ON_REFERENCE, "reference": 3},
            "recipe tiny.yaml:{reference}: reference: expected a data source, got 3",
        ),
        (
            {"augment": {"views": 2}},
            "recipe tiny.yaml:{views}: augment.views: has no effect without augmentation: every epoch shows the same pixels",
        ),
        (
            {"augment": {"views": 3, "flip": 0.5}},
            "recipe tiny.yaml:{views}: augment.views: 3 views, and train.epochs 2 shows no image more often than that",
        ),
    ],
)
def test_what_cannot_be_is_one_line(rift, tiny_recipe, write_recipe, changes, message):
    tiny_recipe["train"] |= changes.get("train", {})
    tiny_recipe |= {key: value for key, value in changes.items() if key != "train"}
    path = write_recipe(tiny_recipe)
    lines = {line.split(":")[0].strip(" '"): i for i, line in enumerate(path.read_text().splitlines(), 1)}
    code, _, err = rift("finetune", "--recipe", path, "--out", "r")
    assert code in (2, 3)
    assert message.format(**lines) in err
    assert not Path("r").exists()


def test_two_ranks_see_the_reference_that_one_sees(tiny_recipe, write_recipe, tmp_path):
    import sys

    from test_distributed import run, steps

    steered = {"name": "rift", "q": "procrustes", "on": "reference", "strength": {"keep": 0.9, "every_steps": 2}}
    tiny_recipe |= {"regularizer": steered, "reference": CLOTHES}
    tiny_recipe["augment"] = {"flip": 0.5, "crop_min_area": 0.5}
    recipe = write_recipe(tiny_recipe)
    for name, ranks in (("one", 1), ("two", 2)):
        command = [sys.executable, "-m", "riftcli", "finetune", "--recipe", recipe, "--device", "cpu", "--out", name]
        done = run([*command, "--nproc-per-node", ranks], tmp_path)
        assert done.returncode == 0, done.stderr
    one, two = steps(tmp_path / "one"), steps(tmp_path / "two")
    logs = [(tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("one", "two")]
    for key in ("task_loss", "penalty_loss", "grad_norm"):
        assert two[1][key] == pytest.approx(one[1][key], rel=1e-3)
        assert two[-1][key] == pytest.approx(one[-1][key], rel=0.02)
    chosen = [[row for row in map(json.loads, lines) if row["kind"] == "strength"] for lines in logs]
    assert [row["step"] for row in chosen[1]] == [2, 4, 6, 8]
    for mine, other in zip(*chosen, strict=True):
        assert other["cka_debiased"] == pytest.approx(mine["cka_debiased"], abs=5e-3), "the same images, on any number of ranks"
        assert other["strength"] == pytest.approx(mine["strength"], rel=0.1)
    uneven = run([*command[:-1], "three", "--nproc-per-node", 2, "--set", "reference.batch_size=25"], tmp_path)
    assert uneven.returncode == 2
    assert (
        "reference.batch_size 25 is global and does not divide over 2 ranks x 1 micro-batches; use --set reference.batch_size=24"
        in uneven.stderr
    )


# ---- fixed views


@pytest.mark.parametrize("regularizer", ["rsc", "ldifs"])
@pytest.mark.parametrize("sampler", ["shuffle", "balanced"])
def test_cached_views_are_what_a_second_forward_gives(tiny_recipe, write_recipe, tmp_path, regularizer, sampler):
    tiny_recipe["augment"] = {"flip": 0.5, "crop_min_area": 0.5}
    tiny_recipe["regularizer"] = {"name": regularizer}
    tiny_recipe["train"] |= {"epochs": 4, "sampler": sampler}
    tiny_recipe["eval"]["cache"] = str(tmp_path / "features")
    path = write_recipe(tiny_recipe)
    live, cached = built(path), built(path, "augment.views=2")
    files = sorted((tmp_path / "features").glob("*.safetensors"))
    images_of: dict[int, torch.Tensor] = {}
    for images, _, place in cached.batches.load(0, epochs=4):
        torch.testing.assert_close(
            cached.step.pretrained(place, images), live.step.pretrained(place, images), rtol=1e-4, atol=1e-4
        )
        for key, image in zip(place.tolist(), images, strict=True):
            assert torch.equal(images_of.setdefault(key, image), image), "a view never changes"
    samples = len(cached.data.splits.train)
    assert {key // samples for key in images_of} == {0, 1}
    both = [i for i in range(samples) if i in images_of and i + samples in images_of]
    assert sum(not torch.equal(images_of[i], images_of[i + samples]) for i in both) > len(both) / 2
    again = built(path, "augment.views=2")
    assert sorted((tmp_path / "features").glob("*.safetensors")) == files, "found again"
    index = torch.tensor([3, samples + 5])
    assert torch.equal(again.step.pretrained(index, images[:2]), cached.step.pretrained(index, images[:2]))
    built(path, "augment.views=2", "augment.flip=0.4")
    assert len(list((tmp_path / "features").glob("*.safetensors"))) == len(files) + 2, "another augmentation is computed anew"


def test_a_second_forward_is_frozen_and_its_rows_can_enter_a_graph(tiny_recipe, write_recipe):
    tiny_recipe["augment"] = {"flip": 0.5}
    tiny_recipe["regularizer"] = {"name": "rsc"}
    setup = built(write_recipe(tiny_recipe))
    images, _, index = next(setup.batches.load(0))
    found = setup.step.pretrained(index, images)
    assert found.is_inference()
    plain = Classifier(frozen_copy(setup.network.vit)).eval()(setup.network.preprocessing.normalise(images)).features
    torch.testing.assert_close(found.clone(), plain.detach())
    setup.step({"task": (images, setup.data.splits.train and torch.from_numpy(setup.data.splits.train.targets)[index], index)})


def test_images_in_folders_are_a_reference_too(rift, tiny_recipe, write_recipe, tmp_path):
    for i in range(12):
        picture(tmp_path / f"others/train/any/{i}.png", i)
    tiny_recipe |= {
        "regularizer": {"name": "rift", "on": "reference"},
        "reference": {"format": "image_folder", "root": str(tmp_path / "others"), "batch_size": 8},
    }
    code, _, err = rift("finetune", "--recipe", write_recipe(tiny_recipe), "--out", "r")
    assert code == 0, err
    resolved = recipes.parse(Path("r/recipe.resolved.yaml").read_text(), "x.yaml", [])
    assert (resolved.reference.batch_size, resolved.reference.split.name) == (8, "train")


def test_a_reference_that_changed_is_noticed_on_resume(rift, tiny_recipe, write_recipe, tmp_path):
    for i in range(12):
        picture(tmp_path / f"others/train/any/{i}.png", i)
    tiny_recipe |= {
        "regularizer": ON_REFERENCE,
        "reference": {"format": "image_folder", "root": str(tmp_path / "others"), "batch_size": 8},
    }
    assert rift("finetune", "--recipe", write_recipe(tiny_recipe), "--out", "r")[0] == 0
    record = json.loads(Path("r/run.json").read_text())
    assert set(record["samples"]) == {"train", "val", "test", "reference"}
    Path("r/run.json").write_text(json.dumps({**record, "status": "interrupted"}))
    picture(tmp_path / "others/train/any/99.png", 99)
    code, _, err = rift("finetune", "--resume", "r")
    assert code == 3
    assert "split 'reference' has other samples or labels than when the run started (13 now)" in err


def test_images_that_are_evaluated_are_found_behind_another_format(rift, tiny_recipe, write_recipe, tmp_path):
    for split in ("train", "test"):
        for label in ("a", "b"):
            for i in range(20):
                picture(tmp_path / f"pics/{split}/{label}/{i}.png", 1000 * (split == "test") + 100 * (label == "b") + i)
    (tmp_path / "other/train").mkdir(parents=True)
    (tmp_path / "other/train/all").symlink_to(tmp_path / "pics/test/a")
    tiny_recipe |= {
        "data": {"format": "image_folder", "root": str(tmp_path / "pics")},
        "regularizer": ON_REFERENCE,
        "reference": {"format": "image_folder", "root": str(tmp_path / "other"), "batch_size": 8, "follow_links": True},
    }
    code, _, err = rift("finetune", "--recipe", write_recipe(tiny_recipe), "--out", "r")
    assert code == 3
    assert "splits 'reference train' and 'test' share 20 samples" in err


def test_set_changes_one_key_of_the_reference(tiny_recipe, write_recipe):
    tiny_recipe |= {"regularizer": ON_REFERENCE, "reference": {"format": "demo_fashion", "split": "test", "batch_size": 24}}
    path = str(write_recipe(tiny_recipe))
    assert recipes.load(path, ["reference.split.limit=30"]).reference.split.name == "test"
    kept = recipes.load(path, ["reference.format=digits"]).reference
    assert (kept.format, kept.batch_size, kept.split.name) == ("digits", 24, "test")
    bare = recipes.load(path, ["reference={format: demo_fashion, split: {limit: 30}}"]).reference
    assert (bare.split.name, bare.split.limit) == ("train", 30)
