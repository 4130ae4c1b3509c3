"""Whole runs whose Q is not solved for: they end where solves end, resume bit for bit, and repeat a step where Q jumped."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file

from riftcli.functional.rotations import CarriedRotation


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


@pytest.mark.parametrize("scale", [10, 600])
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(rift, tiny_recipe, write_recipe, solved, scale):
    """Of 600, a checkpoint that lies where a step is repeated: drop path draws nothing twice."""
    tiny_recipe["regularizer"] |= {"solver": "products", "q_lr_scale": scale}
    tiny_recipe["model"]["drop_path"] = 0.3
    code, _, err = rift("finetune", "--recipe", write_recipe(tiny_recipe), "--out", "whole")
    assert code == 0, err
    newest = sorted(Path("whole/last").iterdir())[-1].name
    shutil.copytree("whole", "half")
    shutil.rmtree(Path("half/last", newest))
    record = json.loads(Path("half/run.json").read_text())
    Path("half/run.json").write_text(json.dumps({**record, "status": "interrupted"}))
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
