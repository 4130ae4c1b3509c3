"""Trajectories, rift correlate, rift centrality."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from evaluation_runs import read
from safetensors.torch import load_file


def test_trajectory_follows_similarity_knn_and_calibration(trained):
    rows = [json.loads(line) for line in (trained / "full" / "s0" / "metrics.jsonl").read_text().splitlines()]
    evals = [row for row in rows if row["kind"] == "eval"]
    assert [row["epoch"] for row in evals] == [0, 1, 2]
    assert set(evals[0]) >= {"acc", "cka", "ece", "retention/demo_fashion/knn", "retention/demo_fashion/cka"}
    assert evals[0]["cka"] == pytest.approx(1)
    assert evals[0]["retention/demo_fashion/cka"] == pytest.approx(1)
    report = json.loads((trained / "full" / "s0" / "metrics.json").read_text())
    best = next(row for row in evals if row["epoch"] == report["model"]["epoch"])
    assert report["retention"]["demo_fashion"]["knn_after"] == best["retention/demo_fashion/knn"]
    assert set(report["metrics"]) == {"acc", "cka"}  # the report holds what the recipe asked for


def test_a_trajectory_needs_a_validation_split(rift, write_recipe, tiny_recipe):
    del tiny_recipe["data"]["val"]
    tiny_recipe["eval"]["trajectory"] = True
    code, _, err = rift("recipes", "validate", write_recipe(tiny_recipe))
    assert (code, err.splitlines()[0]) == (
        2,
        "error: recipe tiny.yaml:24: eval.trajectory: needs a validation split: set data.val",
    )


def test_correlate_over_the_trajectories(rift, trained, tmp_path):
    code, out, err = rift("correlate", trained / "full", trained / "rift", trained / "lora", "--out", "c", "--bins", 4, "--json")
    assert code == 0, err
    report = read(out)
    assert {row["y"] for row in report["rows"]} == {"acc", "ece", "retention/demo_fashion/knn"}
    assert all(row["points"] == 5 * 3 for row in report["rows"])
    (row,) = [row for row in report["rows"] if row["y"] == "ece"]
    single = [(p["cka"], p["ece"]) for p in report["single"]]
    assert row["single_r"] == pytest.approx(np.corrcoef(*zip(*single, strict=True))[0, 1])
    cells = [cell for cell in report["binned"] if cell["y"] == "ece"]
    assert sum(cell["count"] for cell in cells) == 15
    pairs = [(c["x_mean"], c["y_mean"]) for c in cells]
    assert len(pairs) > 2
    assert row["binned_r"] == pytest.approx(np.corrcoef(*zip(*pairs, strict=True))[0, 1])
    assert {p.name for p in (tmp_path / "c").iterdir()} >= {
        "metrics.json",
        "table.csv",
        "binned.csv",
        "single.csv",
        "correlate.png",
    }


def test_bins_and_outliers():
    from riftcli.evaluation.evaluators.correlation import bin_means, line

    pairs = [(0.0, 1.0), (0.1, 3.0), (1.0, 5.0), (0.45, 7.0)]
    found, left_out = bin_means(pairs, 3, 0)
    assert [(cell["bin"], cell["count"], cell["y_mean"]) for cell in found] == [(0, 2, 2), (0.5, 1, 7), (1, 1, 5)]
    assert left_out == 0
    crowd = [(0.0, y) for y in (1.0, 1.1, 0.9, 1.0, 50.0)]
    found, left_out = bin_means(crowd, 3, 1.5)
    assert (left_out, found[0]["count"], found[0]["y_mean"]) == (1, 4, 1.0)
    assert line([(0, 1), (1, 2)])["r"] is None
    assert line([(0, 1.0), (1, 3.0), (2, 5.0)])["slope"] == pytest.approx(2)


def test_correlate_says_what_was_measured(rift, trained):
    code, _, err = rift("correlate", trained / "full", "--y", "auroc")
    known = "acc, ece, retention/demo_fashion/cka, retention/demo_fashion/knn"
    assert (code, err) == (2, f"error: --y auroc: no run measured it; measured: {known}\n")


def test_centrality_is_the_distance_to_the_mean(rift, trained):
    code, out, err = rift("centrality", trained / "full", trained / "rift", "--pretrained", "--json")
    assert code == 0, err
    report = read(out)
    states = [load_file(trained / "full" / f"s{i}" / "model" / "model.safetensors") for i in range(2)]
    names = [name for name in states[0] if not name.startswith("head.")]
    centre = {name: (states[0][name].double() + states[1][name].double()) / 2 for name in names}
    away = math.sqrt(sum(float((states[0][n].double() - centre[n]).square().sum()) for n in names))
    length = math.sqrt(sum(float(centre[n].square().sum()) for n in names))
    row = next(row for row in report["rows"] if row["model"] == "full/s0")
    assert (row["method"], row["distance"]) == ("full", pytest.approx(away))
    assert row["relative"] == pytest.approx(away / length)
    assert row["from_pretrained"] > 0
    assert [mean["method"] for mean in report["averages"]] == ["full", "full + rift"]


def test_a_centre_needs_two_runs(rift, trained):
    code, _, err = rift("centrality", trained / "full", trained / "lora")
    assert (code, err) == (2, "error: lora: the only run of method 'lora'; a centre needs at least two\n")
