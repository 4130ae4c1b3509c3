"""A frozen backbone that two ranks share out is the whole one: real processes, gloo, every bit."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

WORKER = Path(__file__).parent / "sharding_worker.py"
VARYING = ("images_per_second",)


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tiny_recipe_of) -> Path:
    """Folders of one recipe on two ranks: `whole`, `shared` out, and `cut` after its first epoch and resumed; and `never`, whose
    weights never keep as much as they should.

    Features of new crops at every step need the pretrained network there; numbers of images do not divide by two.
    """
    folder, recipe = tmp_path_factory.mktemp("sharding"), tiny_recipe_of()
    recipe |= {"adapter": {"name": "lora", "dropout": 0.1, "targets": ["q", "v", "fc1"]}, "augment": {"crop_min_area": 0.6}}
    recipe["regularizer"] = {"name": "rift", "compare": "features", "q": "fixed"}
    recipe["data"] |= {"val": {"fraction": 0.206, "from": "train"}, "test": {"from": "test", "limit": 49}}
    clothes = {"from": "test", "limit": 31}
    recipe["retention"] = [{"format": "demo_fashion", "test": clothes, "train": dict(clothes)}]
    (folder / "r.yaml").write_text(yaml.safe_dump(recipe))
    command = [sys.executable, "-m", "torch.distributed.run", "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    done = subprocess.run(
        [*command, "--nproc-per-node", "2", str(WORKER)], cwd=folder, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return folder


def rows(run: Path) -> list[dict]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [{key: value for key, value in line.items() if key not in VARYING} for line in lines]


@pytest.mark.parametrize("name", ["shared", "cut"])
def test_a_run_that_is_shared_out_is_the_run_to_the_bit(runs, name):
    line = "frozen blocks: shared out over 2 ranks, 0.1 of 0.1 MB on each"
    assert [line in (runs / n / "train.log").read_text() for n in ("whole", name)] == [False, True]
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


ONLY_LORA = "train.shard_frozen: only adapter.name lora (without dora) leaves the backbone's weights alone, so that they can be "


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"adapter": {"name": "full"}}, f"{ONLY_LORA}shared out"),
        ({"adapter": {"name": "lora", "dora": True}}, f"{ONLY_LORA}shared out"),
        (
            {"model": {"name": "vit_tiny_patch16_224", "pretrained": False}, "regularizer": {"name": "none"}},
            "train.shard_frozen: is for pretrained weights, and model.pretrained is false",
        ),
        (
            {"train": {"start_from": "runs/x"}},
            "train.shard_frozen: cannot be used with train.start_from; begin with its backbone alone: "
            "model.name local-dir:FOLDER",
        ),
        ({"train": {"compile": True}}, "train.compile: cannot be used with train.shard_frozen; leave it at auto"),
    ],
)
def test_what_cannot_be_shared_out_is_said_before_anything_starts(rift, tiny_recipe, write_recipe, changes, message):
    recipe = {**tiny_recipe, "adapter": {"name": "lora"}, **changes}
    recipe["train"] = {**tiny_recipe["train"], "shard_frozen": True, **changes.get("train", {})}
    code, _, err = rift("recipes", "validate", write_recipe(recipe))
    assert code == 2
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert line.endswith(f": {message}"), line


def test_one_process_holds_all_of_it(rift, tiny_recipe, write_recipe):
    """And what comes after a run does not ask for several."""
    tiny_recipe |= {"adapter": {"name": "lora"}}
    tiny_recipe["train"] |= {"epochs": 1, "shard_frozen": True}
    code, _, err = rift("finetune", "--recipe", write_recipe(tiny_recipe), "--out", "r", "--device", "cpu")
    assert code == 0 and "shared out" not in err
    code, _, err = rift("wise", "r", "--alphas", "0.5")
    assert code == 0, err


def test_a_run_whose_weights_never_keep_enough_ends_with_the_last(runs, read_json):
    """No evaluation is usable: after the loop, all ranks gather what rank 0 writes."""
    assert read_json(runs / "never/metrics.json")["model"]["epoch"] == 2
    assert not any("(best)" in line for line in (runs / "never/train.log").read_text().splitlines())


def test_another_number_of_processes_is_refused_and_nothing_is_set_aside(runs):
    shutil.copytree(runs / "shared", runs / "fewer")
    status = json.loads((runs / "fewer/run.json").read_text())
    (runs / "fewer/run.json").write_text(json.dumps({**status, "status": "running"}))
    command = [sys.executable, "-m", "riftcli", "finetune", "--resume", "fewer", "--device", "cpu"]
    done = subprocess.run(command, cwd=runs, capture_output=True, text=True, timeout=120)
    message = "error: --resume: the run was made with 2 processes and this is 1; use --nproc-per-node 2, or so many on several "
    assert done.returncode == 2 and message in done.stderr, done.stderr
    assert sorted(path.name for path in (runs / "fewer/last").iterdir()) == ["step-00000003", "step-00000006"]


def test_two_towers_are_refused(tmp_path):
    import torch.nn as nn

    from riftcli.errors import UsageError
    from riftcli.models.sharding import shard_backbone

    vit = nn.Module()
    vit.text_tower, vit.pretrained_cfg = nn.Linear(2, 2), {"architecture": "two"}
    with pytest.raises(UsageError) as error:
        shard_backbone(vit, torch.device("cpu"))
    assert str(error.value) == "train.shard_frozen: two has two towers; only a backbone of images can be shared out"
