"""Runs of two-tower models by the command line: what they write, resume, and what open_clip makes of it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
import yaml
from safetensors.torch import load_file
from vision_language import opened, two_tower_recipe, with_reference, write_captions, write_clip

from riftcli import cli
from riftcli.models.weights import load_saved

METHODS = {
    "flyp": {},
    "flyp_lora": {"adapter": {"name": "lora"}},
    "image_only": {"adapter": {"name": "full", "towers": "image"}},
    "text_only": {"adapter": {"name": "full", "towers": "text"}},
    "prompts": {"objective": {"name": "prompt_cross_entropy"}},
    "vanilla": {"objective": {"name": "cross_entropy"}, "train.head_init": "zero_shot"},
    "lpft": {"objective": {"name": "cross_entropy"}, "train.head_init": "linear_probe"},
    "vpt": {"objective": {"name": "cross_entropy"}, "adapter": {"name": "vpt", "tokens": 2}},
    "linear": {"objective": {"name": "cross_entropy"}, "adapter": {"name": "linear"}},
    "rift": {"regularizer": {"name": "rift", "compare": "features", "q": "fixed"}},
    "tracer": {"regularizer": {"name": "trajectory_distill", "features": 20.0}},
}
ON_REFERENCE = {
    "replay": {"name": "replay"},
    "snd": {"name": "snd"},
    "dive": {"name": "dive", "strength": 10.0},
    "cosine": {"name": "cosine", "strength": 10.0},
    "rsc": {"name": "rsc", "on": "reference"},
}


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("clip") / "tiny-runs")


@pytest.fixture(scope="session")
def caption_folder(tmp_path_factory):
    return write_captions(tmp_path_factory.mktemp("captions") / "pairs")


def recipe_of(name: str, clip_folder, caption_folder) -> dict:
    recipe = two_tower_recipe(clip_folder, caption_folder)
    if name in ON_REFERENCE:
        return with_reference(recipe, caption_folder, **ON_REFERENCE[name])
    for key, value in METHODS[name].items():
        section, _, field = key.partition(".")
        recipe[section] = {**recipe[section], field: value} if field else value
    return recipe


@pytest.fixture(scope="session")
def runs(clip_folder, caption_folder, tmp_path_factory):
    """Every method once."""
    place = tmp_path_factory.mktemp("runs")
    for name in [*METHODS, *ON_REFERENCE]:
        path = place / f"{name}.yaml"
        path.write_text(yaml.safe_dump(recipe_of(name, clip_folder, caption_folder), sort_keys=False))
        assert cli.run(["finetune", "--recipe", str(path), "--out", str(place / name), "--device", "cpu"]) == 0, name
    return place


def report(runs, name: str) -> dict:
    return json.loads((runs / name / "metrics.json").read_text())


@pytest.mark.parametrize("name", [*METHODS, *ON_REFERENCE])
def test_every_method_trains_and_reports_the_three_numbers(runs, name):
    found = report(runs, name)
    assert 0 <= found["metrics"]["acc"]["value"] <= 1 and found["metrics"]["cka"]["value"] is not None
    assert found["shifted"]["sets"]["other digits"]["n"] == 20
    assert found["zero_shot"]["sets"]["demo_fashion"]["metric"] == "acc"
    for key in ("shifted", "zero_shot"):
        assert found[key]["mean"]["before"] is not None and found[key]["mean"]["after"] is not None
    captions = found["captions"]["pairs"]
    assert captions["n"] == 9 and captions["captions"] == 13
    assert 0 <= captions["after"]["image_to_text_r1"] <= captions["after"]["image_to_text_r10"] <= 1
    assert found["zero_shot_start"]["acc"]["value"] == report(runs, "flyp")["zero_shot_start"]["acc"]["value"]


def moved(runs, name: str, clip_folder) -> set[str]:
    """Which parts of the model are not what they were."""
    before = load_file(clip_folder / "open_clip_model.safetensors")
    after = load_file(runs / name / "model" / "open_clip_model.safetensors")
    assert before.keys() == after.keys()
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    return {"image" if key.startswith("visual.") else "scale" if key == "logit_scale" else "text" for key in changed}


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("flyp", {"image", "text", "scale"}),
        ("flyp_lora", {"image", "text", "scale"}),
        ("image_only", {"image", "scale"}),
        ("text_only", {"text", "scale"}),
        ("prompts", {"image", "text", "scale"}),
        ("vanilla", {"image"}),
        ("linear", set()),
        ("dive", {"image", "text", "scale"}),
    ],
)
def test_what_trains(runs, clip_folder, name, parts):
    expected = parts - ({"text"} if name == "flyp_lora" else set())  # an adapter changes the image tower
    assert moved(runs, name, clip_folder) == expected


@pytest.mark.parametrize(
    ("regularizer", "warned"), [({"name": "snd"}, True), ({"name": "ldifs", "on": "reference"}, True), ({"name": "l2sp"}, False)]
)
def test_text_alone_has_weights_to_keep_and_no_image_features(
    rift, clip_folder, caption_folder, write_recipe, tmp_path, regularizer, warned
):
    recipe = recipe_of("text_only", clip_folder, caption_folder)
    if regularizer["name"] != "l2sp":
        recipe = with_reference(recipe, caption_folder, **regularizer)
    recipe["regularizer"] = regularizer
    code, _, err = rift("finetune", "--recipe", write_recipe(recipe, "text.yaml"), "--out", tmp_path / "run", "--device", "cpu")
    assert code == 0, err
    assert ("the regularizer has no effect: adapter.towers text freezes the image tower" in err) == warned
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert any(row.get("penalty_loss", 0) > 0 for row in rows) == (not warned)


@pytest.mark.parametrize("name", ["flyp", "vanilla", "flyp_lora", "dive"])
def test_the_saved_model_opens_in_open_clip(runs, name):
    clip, tokenizer = opened(runs / name / "model")
    vit = load_saved(runs / name)
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(clip.encode_image(images, normalize=True), vit.forward_head(vit.forward_features(images), pre_logits=True))
    texts = tokenizer(["a photo of a 7."])
    assert torch.equal(clip.encode_text(texts, normalize=True), vit.text_tower(texts))


def test_a_merged_adapter_brings_the_logit_scale_along(runs, rift, tmp_path):
    assert rift("merge", runs / "flyp_lora", "--out", tmp_path / "merged")[0] == 0
    own, merged = (
        load_file(folder / "open_clip_model.safetensors") for folder in (runs / "flyp_lora" / "model", tmp_path / "merged")
    )
    assert own.keys() == merged.keys() and torch.equal(own["logit_scale"], merged["logit_scale"])
    assert max(float((own[key] - merged[key]).abs().max()) for key in own) < 1e-6


@pytest.mark.parametrize("name", ["flyp", "flyp_lora"])
def test_the_image_tower_alone_is_a_timm_model(runs, name):
    import timm

    vit = load_saved(runs / name)
    images = torch.randn(2, 3, 32, 32)
    tower = timm.create_model(f"local-dir:{runs / name / 'image_tower'}", pretrained=True).eval()
    found = torch.nn.functional.normalize(tower(images), dim=-1)
    torch.testing.assert_close(found, vit.forward_head(vit.forward_features(images), pre_logits=True), rtol=1e-5, atol=1e-6)
    assert timm.data.resolve_model_data_config(tower)["mean"] == [0.5, 0.5, 0.5]


def test_the_head_of_a_contrastive_run_is_the_zero_shot_head_of_the_kept_weights(runs):
    import open_clip

    clip, tokenizer = opened(runs / "flyp" / "model")
    classes = json.loads((runs / "flyp" / "model" / "rift.json").read_text())["label_names"]
    templates = [lambda c: f"a photo of a {c}.", lambda c: f"{c}"]
    names = [name.replace("_", " ") for name in classes]
    with torch.no_grad():
        expected = open_clip.build_zero_shot_classifier(clip, tokenizer, names, templates, device="cpu").T
    found = load_file(runs / "flyp" / "model" / "head.safetensors")
    torch.testing.assert_close(found["weight"], (clip.logit_scale.exp() * expected).detach())


@pytest.mark.parametrize("name", ["dive", "tracer", "prompts"])
def test_a_run_that_was_stopped_in_an_epoch_goes_on_bitwise(
    runs, rift, clip_folder, caption_folder, write_recipe, tmp_path, name
):
    """With the second stream, its captions, the running mean and the teacher of weights."""
    import os
    import signal

    from riftcli.training import loop, progress

    path = write_recipe(recipe_of(name, clip_folder, caption_folder), f"{name}.yaml")
    original = loop._move

    def stop_after(state_, *args):
        original(state_, *args)
        if state_.progress.step == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    loop._move = stop_after
    try:
        assert rift("finetune", "--recipe", path, "--out", tmp_path / "stopped", "--device", "cpu")[0] == 143
    finally:
        loop._move = original
    assert progress.Progress().step == 0
    code, _, err = rift("finetune", "--resume", tmp_path / "stopped", "--device", "cpu")
    assert code == 0, err
    for part in ("open_clip_model.safetensors", "head.safetensors"):
        whole, resumed = (load_file(place / "model" / part) for place in (runs / name, tmp_path / "stopped"))
        assert all(torch.equal(whole[key], resumed[key]) for key in whole), part
    last = [sorted((place / "last").glob("step-*"))[-1] for place in (runs / name, tmp_path / "stopped")]
    penalties = [load_file(place / "penalty.safetensors") for place in last]
    assert all(torch.equal(penalties[0][key], penalties[1][key]) for key in penalties[0])


@pytest.mark.parametrize("name", ["dive", "tracer", "prompts", "snd", "flyp"])
def test_the_cost_of_a_step_is_measured_with_its_texts(runs, name):
    from riftcli import recipe as recipes
    from riftcli.training.cost import measure_step

    found = measure_step(recipes.load(str(runs / f"{name}.yaml")), 10, "cpu", repeats=1)
    assert found.seconds_per_image > 0 and found.disk_bytes > found.weight_bytes > 0


def test_two_processes_give_the_run_of_one(runs, tmp_path):
    """DiVE: pairs meet across processes, and so does the running mean of the reference stream."""
    command = [sys.executable, "-m", "riftcli", "finetune", "--recipe", str(runs / "dive.yaml"), "--out", str(tmp_path / "two")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, "--nproc-per-node", "2", "--device", "cpu"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = [
        [json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines()]
        for place in (runs / "dive", tmp_path / "two")
    ]
    steps = [[row for row in own if row["kind"] == "step"] for own in rows]
    assert len(steps[0]) == len(steps[1]) == 6
    for one, two in zip(*steps, strict=True):
        for key in ("task_loss", "penalty_loss", "grad_norm"):
            assert two[key] == pytest.approx(one[key], rel=2e-3, abs=1e-6), (one["step"], key)
    assert steps[1][0]["penalty_loss"] == pytest.approx(steps[0][0]["penalty_loss"], rel=1e-5, abs=1e-9)
    ended = [report(runs, "dive"), json.loads((tmp_path / "two" / "metrics.json").read_text())]
    assert ended[0]["zero_shot_start"]["acc"]["value"] == ended[1]["zero_shot_start"]["acc"]["value"]
    assert ended[0]["captions"]["pairs"]["before"] == ended[1]["captions"]["pairs"]["before"]


def test_wise_starts_at_the_zero_shot_head_bitwise(runs, rift, clip_folder, tmp_path):
    for name in ("flyp", "vanilla"):
        copied = shutil.copytree(runs / name, tmp_path / name)
        code, _, err = rift("wise", copied, "--alphas", "0", "--device", "cpu")
        assert code == 0, err
        before = load_file(clip_folder / "open_clip_model.safetensors")
        after = load_file(copied / "wise" / "model" / "open_clip_model.safetensors")
        assert all(torch.equal(before[key], after[key]) for key in before)
        found = json.loads((copied / "wise" / "metrics.json").read_text())
        assert found["metrics"]["acc"]["value"] == report(runs, name)["zero_shot_start"]["acc"]["value"]
        assert found["zero_shot"]["mean"]["after"] == found["zero_shot"]["mean"]["before"]
        assert found["wise"]["head"] == "zero_shot"


def test_commands_that_look_at_images_take_two_tower_runs(runs, rift, tmp_path):
    copied = shutil.copytree(runs / "flyp", tmp_path / "flyp")
    digits = tmp_path / "digits.yaml"
    digits.write_text(
        "model: {name: none}\ndata: {format: digits, test: {from: test, limit: 30}, train: {from: train, limit: 60}}\n"
    )
    for command in (
        ["eval", "--run", copied],
        ["knn", "--run", copied, "--data", digits, "--k", "3"],
        ["similarity", "--run", copied, "--layers", "all"],
        ["attention", "--run", copied, "--count", "2"],
        ["sharpness", "--run", copied, "--steps", "2"],
        ["zeroshot", "--run", copied, "--data", digits, "--templates", "the digit {}"],
        ["report", copied],
        ["compare", copied, runs / "dive", runs / "vanilla"],
    ):
        code, out, err = rift(*command)
        assert code == 0, f"{command}: {err}"
    assert all(part in err for part in ("pretrained tiny-runs", "zero-shot mean", "shifted mean"))


def test_zeroshot_of_a_model_by_its_name_is_what_the_run_says_it_started_from(runs, rift, clip_folder, tmp_path):
    recipe = tmp_path / "ten.yaml"
    prompts = "prompts: {templates: ['a photo of a {}.', '{}']}\n"
    recipe.write_text("model: {name: none}\ndata: {format: digits, test: {from: test, limit: 30}}\n" + prompts)
    code, out, _ = rift("zeroshot", "--model", f"open_clip:local-dir:{clip_folder}", "--data", recipe, "--json", "--out", "out")
    assert code == 0
    row = json.loads(out)["rows"][0]
    assert row["acc"] == report(runs, "flyp")["zero_shot_start"]["acc"]["value"]
    assert row["prompts"] == 2 * row["classes"]


def test_captions_command(runs, rift, caption_folder, tmp_path):
    copied = shutil.copytree(runs / "dive", tmp_path / "dive")
    recipe = tmp_path / "pairs.yaml"
    recipe.write_text(
        f"model: {{name: none}}\ndata: {{format: captions, root: '{caption_folder}', images: images, "
        "labels: {reference: reference.csv, test: test.csv}, train: reference, test: test}\n"
    )
    code, out, err = rift("captions", "--run", copied, "--data", recipe, "--json")
    assert code == 0, err
    start, row = json.loads(out)["rows"]
    expected = report(runs, "dive")["captions"]["pairs"]
    assert start["image_to_text_r5"] == expected["before"]["image_to_text_r5"] and start["rsa"] is None
    assert row["image_to_text_r5"] == expected["after"]["image_to_text_r5"]
    assert row["rsa"] == pytest.approx(expected["rsa"])
    assert rift("data", "check", "--recipe", recipe)[0] == 0
