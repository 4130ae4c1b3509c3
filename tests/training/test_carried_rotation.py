"""Whole runs whose Q is not solved for: they end where solves end, resume bit for bit, and repeat a step where Q jumped."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from riftcli.data.transforms import Preprocessing
from riftcli.functional.rotations import CarriedRotation
from riftcli.methods.regularizers.rift import Rift
from riftcli.models.backbone import Backbone
from riftcli.models.weights import save_folder


@pytest.fixture
def solved(monkeypatch) -> list[int]:
    """Grows by one entry with every solve that makes up for a product."""
    calls, solve = [], CarriedRotation.solve

    def counted(self):
        calls.append(1)
        solve(self)

    monkeypatch.setattr(CarriedRotation, "solve", counted)
    return calls


def losses(run: str) -> list[float]:
    rows = [json.loads(line) for line in Path(run, "metrics.jsonl").read_text().splitlines()]
    return [row[name] for row in rows if row["kind"] == "step" for name in ("task_loss", "penalty_loss", "q_distance")]


@pytest.mark.parametrize(("estimator", "scale"), [("plugin", 10), ("plugin", 600), ("ema", 600)])
def test_a_run_ends_where_solves_end(rift, tiny_recipe, write_recipe, solved, estimator, scale):
    """q_lr_scale 600 turns Q by so much in a step that its inverse cannot be carried there."""
    tiny_recipe["regularizer"] |= {"estimator": estimator, "q_lr_scale": scale}
    tiny_recipe["train"]["epochs"] = 1
    recipe = write_recipe(tiny_recipe)
    for solver in ("solve", "products"):
        code, _, err = rift("finetune", "--recipe", recipe, "--out", solver, "--set", f"regularizer.solver={solver}")
        assert code == 0, err
    assert bool(solved) == (scale == 600)
    assert losses("products") == pytest.approx(losses("solve"), rel=1e-3, abs=1e-5)
    assert max(losses("solve")[2::3]) > 0.05  # Q moved


def cut(run: str, target: str) -> str:
    """A finished run as one that was interrupted after its first epoch; returns the name of the state it had at its end."""
    shutil.copytree(run, target)
    newest = sorted(Path(target, "last").iterdir())[-1].name
    shutil.rmtree(Path(target, "last", newest))
    record = json.loads(Path(target, "run.json").read_text())
    Path(target, "run.json").write_text(json.dumps({**record, "status": "interrupted"}))
    return newest


@pytest.mark.parametrize("scale", [10, 600])
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(rift, tiny_recipe, write_recipe, solved, scale):
    """Of 600, a checkpoint that lies where a step is repeated: drop path draws nothing twice."""
    tiny_recipe["regularizer"] |= {"solver": "products", "q_lr_scale": scale}
    tiny_recipe["model"]["drop_path"] = 0.3
    code, _, err = rift("finetune", "--recipe", write_recipe(tiny_recipe), "--out", "whole")
    assert code == 0, err
    newest = cut("whole", "half")
    assert bool(solved) == (scale == 600)
    code, _, err = rift("finetune", "--resume", "half")
    assert code == 0, err
    for file in sorted(Path("whole/last", newest).glob("*.safetensors")):
        assert file.read_bytes() == Path("half/last", newest, file.name).read_bytes(), file.name
    assert "inverse" in load_file(Path("half/last", newest, "penalty.safetensors"))


def test_a_state_that_is_saved_at_a_jump_leads_where_the_run_went(rift, tiny_recipe, write_recipe, monkeypatch):
    """Saved in the middle of an epoch after every step: the solve at a save takes the place of the second try."""
    tiny_recipe["regularizer"] |= {"solver": "products", "q_lr_scale": 600}
    tiny_recipe["model"]["drop_path"] = 0.3
    recipe = write_recipe(tiny_recipe)
    assert rift("finetune", "--recipe", recipe, "--out", "plain")[0] == 0
    code, _, err = rift("finetune", "--recipe", recipe, "--out", "saved", "--set", "train.save_every_steps=1")
    assert code == 0, err
    assert losses("plain") == losses("saved")


@pytest.mark.parametrize("first", ["products", "solve"])
def test_a_run_goes_on_where_its_inverse_is_not_carried_and_the_other_way_round(
    rift, tiny_recipe, write_recipe, monkeypatch, first
):
    """`auto` is one thing on a GPU and another on a CPU."""
    tiny_recipe["regularizer"]["q_lr_scale"] = 10
    carried = lambda self, dim, device: CarriedRotation(dim)  # noqa: E731
    with monkeypatch.context() as patched:
        if first == "products":
            patched.setattr(Rift, "_rotation", carried)
        assert rift("finetune", "--recipe", write_recipe(tiny_recipe), "--out", "whole")[0] == 0
    newest = cut("whole", "half")
    if first == "solve":
        monkeypatch.setattr(Rift, "_rotation", carried)
    code, _, err = rift("finetune", "--resume", "half")
    assert code == 0 and "damaged" not in err, err
    ends = [load_file(Path(run, "last", newest, "penalty.safetensors")) for run in ("whole", "half")]
    assert ("inverse" in ends[1]) == (first == "solve")
    torch.testing.assert_close(ends[1]["rotation"], ends[0]["rotation"], rtol=1e-3, atol=1e-6)


def test_the_map_of_a_run_is_its_q(rift, tiny_recipe, write_recipe):
    """Read from the weight alone: what the inverse was carried to does not matter."""
    tiny_recipe["regularizer"] |= {"solver": "products", "q_lr_scale": 100}
    assert rift("finetune", "--recipe", write_recipe(tiny_recipe), "--out", "r")[0] == 0
    code, _, err = rift("align", "pretrained", "r", "--map", "rift", "--out", "map")
    assert code == 0, err
    saved = load_file(sorted(Path("r/last").iterdir())[-1] / "penalty.safetensors")
    skew, eye = (saved["rotation"] - saved["rotation"].T).double(), torch.eye(32, dtype=torch.float64)
    q = torch.linalg.solve(eye + skew, eye - skew).float()
    weight = next(value for name, value in load_file("map/map.safetensors").items() if value.shape == (32, 32))
    assert min(float((weight - way).abs().max()) for way in (q, q.T)) < 1e-5
    assert float((q - eye).abs().max()) > 0.05


def test_running_statistics_move_once_in_a_step_that_is_repeated(rift, tiny_recipe, write_recipe, solved, tmp_path):
    network = Backbone("test_resnet", pretrained=False).build()
    save_folder(tmp_path / "resnet", network, [], Preprocessing.of_model(network, None, 1.0))
    tiny_recipe["model"] = {"name": f"local-dir:{tmp_path / 'resnet'}"}
    tiny_recipe["regularizer"] |= {"solver": "products", "q_lr_scale": 600, "normalize": "relative"}
    tiny_recipe["train"] |= {"epochs": 1, "head_init": "zeros", "on_collapse": "warn"}
    code, _, err = rift("finetune", "--recipe", write_recipe(tiny_recipe), "--out", "r")
    assert code == 0, err
    saved = load_file(sorted(Path("r/last").iterdir())[-1] / "model.safetensors")
    counts = {int(value) for name, value in saved.items() if name.endswith("num_batches_tracked")}
    assert solved and counts == {4}, "as many as steps"
