"""A frozen backbone that two ranks share out is the whole one: real processes, gloo, every bit."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

VARYING = ("images_per_second",)


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tiny_recipe_of) -> Path:
    """Three folders of one recipe on two ranks: `whole`, `shared` out, and `cut` after its first epoch and resumed.

    Features of new crops at every step need the pretrained network there; numbers of images do not divide by two.
    """
    import yaml

    folder, recipe = tmp_path_factory.mktemp("sharding"), tiny_recipe_of()
    recipe |= {"adapter": {"name": "lora", "dropout": 0.1, "targets": ["q", "v", "fc1"]}, "augment": {"crop_min_area": 0.6}}
    recipe["regularizer"] = {"name": "rift", "compare": "features", "q": "fixed"}
    recipe["data"] |= {"val": {"fraction": 0.206, "from": "train"}, "test": {"from": "test", "limit": 49}}
    clothes = {"from": "test", "limit": 31}
    recipe["retention"] = [{"format": "demo_fashion", "test": clothes, "train": dict(clothes)}]
    (folder / "r.yaml").write_text(yaml.safe_dump(recipe))
    for name, more in (("whole", []), ("shared", ["--set", "train.shard_frozen=true"])):
        done = finetune(folder, "--recipe", "r.yaml", "--out", name, *more)
        assert done.returncode == 0, done.stderr
        assert ("frozen blocks: shared out over 2 ranks, 0.1 of 0.1 MB on each" in done.stderr) == (name == "shared")
    shutil.copytree(folder / "shared", folder / "cut")
    shutil.rmtree(folder / "cut/last/step-00000006")
    status = json.loads((folder / "cut/run.json").read_text())
    (folder / "cut/run.json").write_text(json.dumps({**status, "status": "running"}))
    done = finetune(folder, "--resume", "cut")
    assert done.returncode == 0 and "resuming after step 3 of 6" in done.stderr, done.stderr
    return folder


def finetune(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "riftcli", "finetune", *arguments, "--nproc-per-node", "2", "--device", "cpu"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)


def rows(run: Path) -> list[dict]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [{key: value for key, value in line.items() if key not in VARYING} for line in lines]


@pytest.mark.parametrize("name", ["shared", "cut"])
def test_a_run_that_is_shared_out_is_the_run_to_the_bit(runs, name):
    assert len(rows(runs / "whole")) == 9
    assert rows(runs / name) == rows(runs / "whole")
    for file in ("model/model.safetensors", "adapter/adapter_model.safetensors"):
        one, two = load_file(runs / "whole" / file), load_file(runs / name / file)
        assert set(one) == set(two) and all(torch.equal(one[key], two[key]) for key in one), file
    assert (runs / name / "model/config.json").read_text() == (runs / "whole/model/config.json").read_text()
    reports = [json.loads((runs / n / "metrics.json").read_text()) for n in ("whole", name)]
    for key in ("metrics", "retention", "validation", "data", "training_data"):
        assert reports[0][key] == reports[1][key], key
    for key in ("params", "trainable_params", "sha256"):
        assert reports[0]["model"][key] == reports[1]["model"][key], key


def test_a_checkpoint_leaves_out_what_never_changes(runs):
    whole, shared = (load_file(runs / name / "last/step-00000006/model.safetensors") for name in ("whole", "shared"))
    frozen = set(whole) - set(shared)
    assert {key for key in whole if key.startswith("blocks.")} - frozen == {key for key in whole if ".lora_" in key}
    assert all(torch.equal(whole[key], shared[key]) for key in shared)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"adapter": {"name": "full"}}, "train.shard_frozen: only adapter.name lora (without dora) leaves the backbone's"),
        ({"adapter": {"name": "lora", "dora": True}}, "train.shard_frozen: only adapter.name lora (without dora) leaves the"),
        ({"train": {"start_from": "runs/x"}}, "train.shard_frozen: cannot be used with train.start_from"),
        ({"train": {"compile": True}}, "train.compile: cannot be used with train.shard_frozen"),
    ],
)
def test_what_cannot_be_shared_out_is_said_before_anything_starts(rift, tiny_recipe, write_recipe, changes, words):
    recipe = {**tiny_recipe, "adapter": changes.get("adapter", {"name": "lora"})}
    recipe["train"] |= {"shard_frozen": True, **changes.get("train", {})}
    code, _, err = rift("recipes", "validate", write_recipe(recipe))
    assert code == 2 and words in err


def test_one_process_holds_all_of_it(rift, tiny_recipe, write_recipe):
    tiny_recipe |= {"adapter": {"name": "lora"}}
    tiny_recipe["train"] |= {"epochs": 1, "shard_frozen": True}
    code, _, err = rift("finetune", "--recipe", write_recipe(tiny_recipe), "--out", "r", "--device", "cpu")
    assert code == 0 and "shared out" not in err
