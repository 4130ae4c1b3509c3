"""Temperature scaling and reliability."""

from __future__ import annotations

import csv

import pytest
import yaml


def test_eval_writes_a_reliability_diagram_and_fits_a_temperature(rift, run, read_json):
    code, _, err = rift("eval", "--run", run, "--metrics", "ece,ece_adaptive,brier,nll,knn", "--temperature-scaling")
    assert code == 0, err
    folder = run / "eval" / "digits-test"
    report = read_json(folder / "metrics.json")
    scaled = report["temperature"]
    assert (scaled["fitted_on"], scaled["n"]) == ("val", 32)
    assert scaled["value"] > 0
    rows = list(csv.DictReader((folder / "reliability.csv").open()))
    assert sum(int(row["count"]) for row in rows) == 60
    error = sum(int(r["count"]) / 60 * abs(float(r["accuracy"]) - float(r["confidence"])) for r in rows if int(r["count"]))
    assert error == pytest.approx(report["metrics"]["ece"]["value"], abs=1e-6)
    assert (folder / "reliability.png").stat().st_size > 5000
    assert (folder / "reliability_scaled.csv").is_file()


def test_a_temperature_needs_a_validation_split(rift, run):
    stored = run / "recipe.resolved.yaml"
    recipe = yaml.safe_load(stored.read_text())
    recipe["data"]["val"], recipe["eval"]["trajectory"] = None, False
    stored.write_text(yaml.safe_dump(recipe))
    code, _, err = rift("eval", "--run", run, "--metrics", "acc", "--temperature-scaling")
    assert (code, err) == (2, "error: --temperature-scaling: the recipe has no validation split to fit on (data.val)\n")


def test_a_folder_of_seeds_where_one_run_is_meant(rift, trained):
    code, _, err = rift("eval", "--run", trained / "full")
    where = trained / "full"
    assert (code, err) == (2, f"error: --run {where}: a folder of 2 runs, and this looks at one; name it, e.g. {where / 's0'}\n")
