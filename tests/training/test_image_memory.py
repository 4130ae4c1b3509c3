"""`launch.image_memory`: training images decoded once, and a run that is the same with and without, whole and resumed."""

from __future__ import annotations

import gc
import json
import os
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch
from dataset_copies import picture
from safetensors.torch import load_file

from riftcli import recipe as recipes
from riftcli.console import Console
from riftcli.data import images
from riftcli.data.kept_images import KeepingReader
from riftcli.training import data as training_data
from riftcli.training import final, finetune, loop
from riftcli.training.setup import set_up

LINE = "input: decoded images are kept in memory for the next epoch, "


@pytest.fixture
def of_files(tiny_recipe, tmp_path):
    """Two streams of image files, three epochs, augmented."""
    for split, count in (("train", 12), ("test", 4)):
        for k, label in enumerate("ab"):
            for i in range(count):
                kind = "jpg" if i % 3 else "png"
                picture(tmp_path / "data" / split / label / f"{i}.{kind}", 1000 * (split == "test") + 100 * k + i)
    for i in range(8):
        picture(tmp_path / f"others/train/any/{i}.png", 5000 + i)
    tiny_recipe["data"] = {"format": "image_folder", "root": str(tmp_path / "data")}
    tiny_recipe["augment"] = {"flip": 0.5, "crop_min_area": 0.5}
    tiny_recipe["train"] |= {"epochs": 3, "batch_size": 8, "workers": 0}
    tiny_recipe["regularizer"] = {"name": "rift", "on": "reference"}
    tiny_recipe["reference"] = {"format": "image_folder", "root": str(tmp_path / "others"), "batch_size": 8}
    tiny_recipe["eval"] = {"cache": None}
    return tiny_recipe


@pytest.fixture
def decoded(monkeypatch) -> Counter:
    """How often each file was."""
    found, real = Counter(), images._read

    def read(path, *arguments):
        found[f"{Path(path).parts[-3]}/{Path(path).parts[-2]}/{Path(path).name}"] += 1
        return real(path, *arguments)

    monkeypatch.setattr(images, "_read", read)
    return found


def logged(folder: str) -> list[dict]:
    rows = map(json.loads, Path(folder, "metrics.jsonl").read_text().splitlines())
    return [{key: value for key, value in row.items() if "second" not in key and key != "time"} for row in rows]


def weights(folder: str) -> dict[str, torch.Tensor]:
    return load_file(Path(folder, "model/model.safetensors"))


def same(one: str, other: str) -> bool:
    a, b = weights(one), weights(other)
    return logged(one) == logged(other) and a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_a_run_with_and_without_is_the_same_and_decodes_every_image_once(rift, of_files, write_recipe, decoded):
    recipe, counts = write_recipe(of_files), {}
    settings = {"none": ["launch.image_memory=0"], "auto": [], "little": ["launch.image_memory=0.000004"]}
    for name, values in settings.items():
        decoded.clear()
        code, _, err = rift("finetune", "--recipe", recipe, "--out", name, *[word for v in values for word in ("--set", v)])
        assert code == 0, err
        assert (LINE in err) == (name != "none")
        counts[name] = sum(count for path, count in decoded.items() if path.startswith("train/"))
    assert "kept in memory for the next epoch, 0.0 GB at most" in err
    assert same("none", "auto") and same("none", "little")
    # For their features at the start, and in every epoch, of which the second stream of 8 has nine.
    assert counts["none"] == (1 + 3) * 24 + (1 + 9) * 8 and counts["auto"] == 24 + 8
    assert counts["auto"] < counts["little"] < counts["none"]
    gc.collect()  # where timm was imported by this run, its frames are a cycle
    names = [os.readlink(entry.path) for entry in os.scandir("/proc/self/fd") if os.path.islink(entry.path)]
    assert not [name for name in names if "memfd:rift" in name], "a run in the same process has its memory again"


@pytest.mark.parametrize("store", [False, True])
def test_what_is_not_augmented_is_kept_as_it_is_shown(rift, of_files, write_recipe, decoded, store):
    of_files["augment"], of_files["input"] = {}, {"cache": "store" if store else None}
    recipe = write_recipe(of_files)
    for name, amount in (("none", 0), ("auto", '"auto"')):
        decoded.clear()
        code, _, err = rift("finetune", "--recipe", recipe, "--out", name, "--set", f"launch.image_memory={amount}")
        assert code == 0 and (LINE in err) == (name == "auto"), err
        if not store:
            counts = [sum(n for path, n in decoded.items() if path.startswith(f"train/{kind}/")) for kind in ("a", "any")]
            assert counts == ([4 * 12, 10 * 8] if name == "none" else [2 * 12, 2 * 8]), "for the features at the start, and once"
    assert same("none", "auto")


def test_a_resumed_run_may_have_another_amount_and_is_bitwise_the_same(rift, of_files, write_recipe):
    of_files["train"]["epochs"] = 2
    assert rift("finetune", "--recipe", write_recipe(of_files), "--out", "whole")[0] == 0
    shutil.copytree("whole", "cut")
    shutil.rmtree("cut/last/step-00000006")
    record = json.loads(Path("cut/run.json").read_text())
    Path("cut/run.json").write_text(json.dumps({**record, "status": "running"}))
    code, _, err = rift("finetune", "--resume", "cut", "--set", "launch.image_memory=0")
    assert code == 0 and "resuming after step 3 of 6" in err and LINE not in err
    assert same("whole", "cut")


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ([], True),
        (["augment.views=2"], True),
        (["launch.image_memory=2"], True),
        (["launch.image_memory=0"], False),
        (["input.cache=store"], False),
    ],
)
def test_where_images_are_kept(of_files, write_recipe, settings, kept, monkeypatch):
    monkeypatch.setattr(training_data, "free_memory", lambda: 12 * 10**9)
    setup = set_up(recipes.load(str(write_recipe(of_files)), settings), torch.device("cpu"), Console(quiet=True))
    readers = [setup.data.splits.train.read, setup.data.reference.read]
    assert [isinstance(read, KeepingReader) for read in readers] == [kept, kept]
    assert not isinstance(setup.data.splits.test.read, KeepingReader), "what is evaluated is kept as it is shown"
    if kept:
        assert setup.data.images.most == (2 * 10**9 if "launch.image_memory=2" in settings else 3 * 10**9)
        assert setup.data.images.reserve == 3 * 10**9 and setup.data.images.count == 24 + 8
        assert setup.data.kept == {"task": readers[0].kept, "reference": readers[1].kept}
        assert readers[0].kept.images is readers[1].kept.images and readers[1].kept.first == 24


@pytest.mark.parametrize("fails", [False, True])
def test_the_memory_is_given_back_before_the_report(rift, of_files, write_recipe, monkeypatch, fails):
    seen = []

    def run_loop(state):
        loop.run_loop(state)
        seen.append(state.setup.data.images)
        assert seen[0].kept()[0] == 32
        if fails:
            raise RuntimeError("of the test")

    def report(state):
        assert seen[0].kept() == (0, 1) and seen[0].room
        return final.final_report(state)

    monkeypatch.setattr(finetune, "run_loop", run_loop)
    monkeypatch.setattr(finetune, "final_report", report)
    code, _, err = rift("finetune", "--recipe", write_recipe(of_files), "--out", "r")
    assert (code == 0) is not fails, err
    assert seen[0].kept() == (0, 1)


def test_in_one_epoch_only_the_second_stream_goes_round(of_files, write_recipe):
    setup = set_up(recipes.load(str(write_recipe(of_files)), ["train.epochs=1"]), torch.device("cpu"), Console(quiet=True))
    assert list(setup.data.kept) == ["reference"] and not isinstance(setup.data.splits.train.read, KeepingReader)
    assert isinstance(setup.data.reference.read, KeepingReader) and setup.data.kept["reference"].first == 0


def test_where_nothing_is_trained_nothing_is_kept(rift, of_files, write_recipe):
    of_files |= {"regularizer": {"name": "none"}, "data": {**of_files["data"], "val": {"fraction": 0.25}}}
    del of_files["reference"]
    recipe = write_recipe(of_files)
    code, out, err = rift("finetune", "--recipe", recipe, "--dry-run")
    assert code == 0 and LINE not in out + err
    assert rift("finetune", "--recipe", recipe, "--out", "r")[0] == 0
    code, out, err = rift("wise", "r")
    assert code == 0 and LINE not in out + err, err


def test_images_in_memory_and_features_that_stand_in_need_none(of_files, write_recipe):
    for change in (
        {"adapter": {"name": "linear"}, "regularizer": {"name": "none"}, "augment": {}},
        {"data": {"format": "digits"}},
    ):
        own = {**of_files, **change}
        if "adapter" in change:
            del own["reference"]
        else:
            own["reference"] = {"format": "demo_fashion", "split": {"from": "test", "limit": 30}, "batch_size": 8}
        setup = set_up(recipes.load(str(write_recipe(own))), torch.device("cpu"), Console(quiet=True))
        assert not isinstance(setup.data.splits.train.read, KeepingReader) and not setup.data.kept


def test_a_system_without_files_in_memory_decodes_every_time(rift, of_files, write_recipe, monkeypatch):
    monkeypatch.delattr("os.memfd_create")
    code, _, err = rift("finetune", "--recipe", write_recipe(of_files), "--out", "r")
    assert code == 0 and LINE not in err


@pytest.mark.parametrize(("amount", "expected"), [("0.000004", True), ("auto", False)])
def test_how_much_all_of_them_would_need_is_said(of_files, write_recipe, monkeypatch, amount, expected):
    monkeypatch.setattr(final, "installed", lambda name: "1")
    monkeypatch.setattr(final, "data_workers", lambda wanted: 0)
    recipe = recipes.load(str(write_recipe(of_files)), [f"launch.image_memory={amount}"])
    setup = set_up(recipe, torch.device("cpu"), Console(quiet=True))
    images = setup.data.images
    for batches, steps in ((setup.batches, 3), (setup.data.reference_batches, 1)):
        for _ in zip(range(steps), batches.load(0), strict=False):
            pass
    assert (images.kept()[0] == 32) is not expected
    images.release()
    told = final.faster_images({"data_seconds": 70.0, "train_seconds": 100.0}, recipe, True, images)
    line = "images were waited for 70 s; faster: launch.image_memory 1 (GB), for all decoded images; input.cache FOLDER, which "
    assert told == (line + "keeps decoded images" if expected else None)


@pytest.mark.parametrize(
    ("value", "why"),
    [("-1", "greater than or equal to 0"), ("much", "auto")],
)
def test_wrong_amounts_are_one_line(rift, of_files, write_recipe, value, why):
    code, _, err = rift("finetune", "--recipe", write_recipe(of_files), "--out", "r", "--set", f"launch.image_memory={value}")
    assert code == 2 and "launch.image_memory" in err and len(err.strip().splitlines()) == 1
