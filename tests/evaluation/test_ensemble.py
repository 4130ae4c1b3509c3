"""Several runs as one: the mean of their probabilities, against numpy on the runs' own predictions."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from riftcli.evaluation.ensemble import mean_logits


def shares(text: str) -> tuple[list[str], np.ndarray]:
    rows = list(csv.DictReader(text.splitlines()))
    return [row["class"] for row in rows], np.array([[float(row[key]) for key in row if key.startswith("p_")] for row in rows])


def test_predictions_are_the_mean_of_the_runs(rift, trained, tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(6):
        pixels = np.random.default_rng(i).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    single = [shares(rift("predict", trained / "full" / name, folder)[1])[1] for name in ("s0", "s1")]
    code, out, err = rift("predict", trained / "full", folder, "--ensemble")
    assert code == 0, err
    labels, mean = shares(out)
    assert mean == pytest.approx((single[0] + single[1]) / 2, abs=2e-6)
    assert labels == [str(i) for i in mean.argmax(1)]


def test_an_ensemble_is_evaluated_from_its_probabilities(rift, trained, tmp_path, read_json):
    import shutil

    runs = shutil.copytree(trained / "full", tmp_path / "full")
    parts = []
    for name in ("s0", "s1"):
        assert rift("eval", "--run", runs / name)[0] == 0
        parts.append(list(csv.DictReader((runs / name / "eval" / "digits-test" / "predictions.csv").open())))
    mean = np.mean([[[float(row[f"p_{c}"]) for c in range(10)] for row in rows] for rows in parts], axis=0)
    truth = np.array([int(row["target"]) for row in parts[0]])
    code, out, err = rift("eval", "--run", runs, "--ensemble", "--json")
    assert code == 0, err
    report = json.loads(out)
    assert report["metrics"]["acc"]["value"] == pytest.approx((mean.argmax(1) == truth).mean())
    assert "cka" not in report["metrics"], "a mean of probabilities has no features"
    assert report["model"]["label"] == "full (ensemble of 2)"
    assert [Path(p).parent.name for p in report["model"]["members"]] == ["s0", "s1"]
    assert (report["model"]["sha256"], report["model"]["path"]) == (None, str(runs))
    assert read_json(runs / "eval" / "digits-test" / "metrics.json") == report
    rows = list(csv.DictReader((runs / "eval" / "digits-test" / "predictions.csv").open()))
    found = np.array([[float(row[f"p_{c}"]) for c in range(10)] for row in rows])
    assert found == pytest.approx(mean, abs=3e-6)


def test_what_is_no_ensemble_is_one_line(rift, trained, run):
    code, _, err = rift("eval", "--run", trained / "full", "--ensemble", "--metrics", "acc,cka")
    assert (code, err) == (2, "error: --metrics cka: an ensemble has probabilities, and no features of its own\n")
    code, _, err = rift("eval", "--run", run, "--ensemble")
    assert (code, err) == (2, f"error: {run}: --ensemble averages several runs; name a folder of --repeats or --folds\n")
    code, _, err = rift("eval", "--run", trained / "full", "--ensemble", "--temperature-scaling")
    assert (code, err) == (2, "error: --ensemble does not go together with --temperature-scaling\n")


@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
def test_mean_logits_give_the_mean_probabilities(task):
    parts = [5 * torch.randn(7, 4, generator=torch.Generator().manual_seed(i), dtype=torch.float64) for i in range(3)]
    parts[0][0, 0] = 2000.0  # a probability of exactly 1 in one of them
    squash = (lambda x: x.softmax(1)) if task == "multiclass" else torch.sigmoid
    expected = torch.stack([squash(part) for part in parts]).mean(0)
    torch.testing.assert_close(squash(mean_logits(parts, task)), expected)
    assert mean_logits([torch.full((1, 2), 3000.0)], "multilabel").isfinite().all()


def test_folds_are_not_measured_on_images_that_some_of_them_trained_on(rift, tiny_recipe, write_recipe):
    tiny_recipe["train"]["epochs"] = 1
    tiny_recipe["data"] |= {"val": None, "test": None}
    recipe = write_recipe(tiny_recipe)
    assert rift("finetune", "--recipe", recipe, "--folds", 2, "--out", "cv")[0] == 0
    code, _, err = rift("eval", "--run", "cv", "--ensemble")
    assert code == 2
    assert err.startswith("error: --split test: the runs have different images in it, as folds have, so some were trained on")
    tiny_recipe["data"]["test"] = {"from": "test", "limit": 40}
    assert rift("finetune", "--recipe", write_recipe(tiny_recipe), "--folds", 2, "--out", "shared")[0] == 0
    assert rift("eval", "--run", "shared", "--ensemble")[0] == 0
    assert rift("eval", "--run", "shared", "--ensemble", "--split", "val")[0] == 2
