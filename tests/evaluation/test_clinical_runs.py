"""`rift clinical` on real finished runs, against scikit-learn on the run's own predictions."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from evaluation_runs import table
from sklearn import metrics


def test_numbers_are_scikit_learn_s_on_the_predictions(rift, run):
    code, out, err = rift("clinical", "--run", run, "--draws", 200, "--json")
    assert code == 0, err
    report = json.loads(out)
    assert rift("eval", "--run", run)[0] == 0
    rows = list(csv.DictReader((run / "eval" / "digits-test" / "predictions.csv").open()))
    held = {}
    assert rift("eval", "--run", run, "--split", "val")[0] == 0
    held = list(csv.DictReader((run / "eval" / "digits-val" / "predictions.csv").open()))
    found = {(r["class"], r["rule"], r["measure"]): r for r in report["rows"]}
    for name in ("0", "7"):
        truth = np.array([row["target"] == name for row in rows])
        scores = np.array([float(row[f"p_{name}"]) for row in rows])
        own = found[name, "", "auroc"]
        assert own["value"] == pytest.approx(metrics.roc_auc_score(truth, scores), abs=1e-4)
        assert own["low"] <= own["value"] <= own["high"]
        assert (own["positives"], own["negatives"]) == (truth.sum(), (~truth).sum())
        at = found[name, "0.5", "sensitivity"]
        assert at["value"] == pytest.approx(metrics.recall_score(truth, scores >= 0.5))
        chosen = found[name, "validation", "specificity"]
        known = np.array([row["target"] == name for row in held])
        beside = np.array([float(row[f"p_{name}"]) for row in held])
        right = [(known & (beside >= t)).sum() / known.sum() + (~known & (beside < t)).sum() / (~known).sum()
                 for t in [*np.unique(beside), chosen["threshold"]]]  # fmt: skip
        assert right[-1] == pytest.approx(max(right)), "the best on validation"
        assert chosen["value"] == pytest.approx(metrics.recall_score(~truth, scores < chosen["threshold"]))
    accuracy = found["all classes", "", "accuracy"]
    assert accuracy["value"] == pytest.approx(np.mean([row["target"] == row["predicted"] for row in rows]))
    assert accuracy["low"] < accuracy["value"] < accuracy["high"]
    place = run / "clinical" / "digits-test"
    assert {p.name for p in place.iterdir()} == {
        "metrics.json", "table.csv", "roc.csv", "pr.csv", "net_benefit.csv", "clinical.png",
    }  # fmt: skip
    assert len(table(place)) == len(report["rows"])
    assert "myrun on digits test: 95 % intervals from 200 draws of images; thresholds chosen on validation, 0.5 without" in err


def test_patients_are_drawn_whole_and_labels_may_be_several(rift, tiny_recipe, write_recipe, tmp_path):
    from PIL import Image

    rows = ["image,patient,edema,mass"]
    for i in range(90):
        pixels = np.random.default_rng(i).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"x{i}.png")
        rows.append(f"x{i}.png,p{i // 3},{i % 2},{i // 2 % 2}")
    (tmp_path / "all.csv").write_text("\n".join(rows) + "\n")
    tiny_recipe["data"] = {
        "format": "csv_table", "root": str(tmp_path), "labels": {"all": "all.csv"}, "label_columns": ["edema", "mass"],
        "task": "multilabel", "group_columns": ["patient"], "train": "all", "val": {"fraction": 0.2, "group": "patient"},
        "test": {"fraction": 0.3, "group": "patient"},
    }  # fmt: skip
    tiny_recipe |= {"objective": {"name": "bce"}, "eval": {"metrics": ["map", "cka"], "best": "map"}}
    tiny_recipe["train"] |= {"epochs": 1, "batch_size": 16}
    code, _, err = rift("finetune", "--recipe", write_recipe(tiny_recipe), "--out", "run")
    assert code == 0, err
    code, out, err = rift("clinical", "--run", "run", "--draws", 100, "--json")
    assert code == 0, err
    report = json.loads(out)
    assert list(report["settings"]["drawn"].values()) == ["patient"]
    assert {row["class"] for row in report["rows"]} == {"all classes", "edema", "mass"}
    assert {row["measure"] for row in report["rows"] if row["class"] == "all classes"} == {"auroc"}
    code, _, err = rift("clinical", "--run", "run", "--group", "slide")
    assert (code, err) == (2, "error: --group slide: split 'test' has no such column; it has: patient\n")


def test_a_class_without_images_is_undefined_and_not_a_crash(rift, run):
    code, out, err = rift("clinical", "--run", run, "--draws", 100, "--set", "data.test={from: test, limit: 5}", "--json")
    assert code == 0, err
    rows = json.loads(out)["rows"]
    empty = [row for row in rows if row["positives"] == 0]
    assert empty
    assert all(row["value"] is None for row in empty if row["measure"] in ("auroc", "sensitivity"))
    assert all(row["value"] is not None for row in empty if row["measure"] == "specificity")


def test_thresholds_are_of_other_images_than_the_numbers(rift, tiny_recipe, write_recipe):
    tiny_recipe["data"]["test"] = None
    tiny_recipe["train"]["epochs"] = 1
    assert rift("finetune", "--recipe", write_recipe(tiny_recipe), "--out", "run")[0] == 0
    code, out, err = rift("clinical", "--run", "run", "--draws", 100, "--json")
    assert code == 0, err
    report = json.loads(out)
    assert {row["rule"] for row in report["rows"]} == {"", "0.5"}
    assert "threshold 0.5: no validation images beside these" in err
