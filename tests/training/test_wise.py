"""Weight interpolation: exact ends, selection on validation, and what is refused."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file

from riftcli.errors import ModelError, UsageError
from riftcli.training.wise import interpolate, parse_alphas


def test_the_ends_are_exact_and_counters_are_not_mixed():
    generator = torch.Generator().manual_seed(0)
    before = {"w": torch.randn(50, generator=generator), "n": torch.tensor(3)}
    after = {"w": torch.randn(50, generator=generator), "n": torch.tensor(9)}
    assert torch.equal(interpolate(before, after, 0.0)["w"], before["w"])
    assert torch.equal(interpolate(before, after, 1.0)["w"], after["w"])
    torch.testing.assert_close(interpolate(before, after, 0.25)["w"], 0.75 * before["w"] + 0.25 * after["w"])
    assert interpolate(before, after, 0.5)["n"] == 9
    with pytest.raises(ModelError) as caught:
        interpolate(before, {**after, "x": before["w"]}, 0.5)
    assert str(caught.value) == "the pretrained and the finetuned model differ in their parameters, e.g. x"


@pytest.mark.parametrize(
    ("text", "expected"),
    [("0:1:0.25", [0, 0.25, 0.5, 0.75, 1]), ("0:1:0.1", [i / 10 for i in range(11)]), ("0.5", [0.5]), ("1,0", [1, 0])],
)
def test_alphas(text, expected):
    assert parse_alphas(text) == pytest.approx(expected)


@pytest.mark.parametrize("text", ["", "a", "0:1", "0:1:0", "0,1.5", "0:1:0.4", "nan", "0:inf:1"])
def test_alphas_that_are_wrong(text):
    with pytest.raises(UsageError):
        parse_alphas(text)


@pytest.mark.parametrize("adapter", ["full", "lora"])
def test_a_run(adapter, rift, tiny_recipe, write_recipe, read_json):
    tiny_recipe["adapter"] = {"name": adapter}
    code, _, err = rift("finetune", "--recipe", write_recipe(tiny_recipe), "--out", "run")
    assert code == 0, err
    code, out, err = rift("wise", "run", "--alphas", "0:1:0.5", "--json")
    assert code == 0, err
    report = json.loads(out)
    assert report == read_json("run/wise/metrics.json")
    rows = report["wise"]["validation"]
    assert [row["alpha"] for row in rows] == [0, 0.5, 1]
    assert rows[0]["cka"] == pytest.approx(1, abs=1e-6), "alpha 0 is the pretrained backbone"
    run = read_json("run/metrics.json")
    assert rows[2] == {"alpha": 1.0, **{name: pytest.approx(run["validation"][name], abs=1e-6) for name in ("acc", "cka")}}
    best = max(row["acc"] for row in rows)
    assert report["wise"]["alpha"] == min(row["alpha"] for row in rows if row["acc"] == best), "a tie keeps more"
    with Path("run/wise/alphas.csv").open() as file:
        assert [float(row["alpha"]) for row in csv.DictReader(file)] == [0, 0.5, 1]
    folder = Path("run/wise/model").resolve()
    model = timm.create_model(f"local-dir:{folder}", pretrained=True)
    kept = load_file(folder / "model.safetensors")
    assert torch.equal(model.head.weight, kept["head.weight"])
    code, _, err = rift("wise", "run", "--alphas", "1", "--head", "finetuned")
    assert code == 0, err
    exact, own = load_file(folder / "model.safetensors"), load_file("run/model/model.safetensors")
    assert all(torch.equal(exact[name], own[name]) for name in own), "alpha 1 is the run, bit for bit"
    assert read_json("run/wise/metrics.json")["metrics"]["acc"] == run["metrics"]["acc"]


def test_what_has_no_pretrained_end(rift, tiny_recipe, write_recipe):
    tiny_recipe["train"]["epochs"] = 1
    for change, message in (
        ({"adapter": {"name": "vpt"}}, "vpt inserts layers that the pretrained model lacks, so there is nothing in between"),
        (
            {"model": {**tiny_recipe["model"], "pretrained": False}, "regularizer": {"name": "none"}},
            "trained from scratch, so there are no pretrained weights to mix with",
        ),
    ):
        code, _, err = rift("finetune", "--recipe", write_recipe({**tiny_recipe, **change}), "--out", "run", "--overwrite")
        assert code == 0, err
        assert rift("wise", "run")[::2] == (2, f"error: run: {message}\n")
    assert rift("wise", "nowhere")[::2] == (2, "error: nowhere: not a run folder (no recipe.resolved.yaml)\n")
