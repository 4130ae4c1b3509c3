"""Class imbalance and cross-validation: weights against their definition, sampling against its seed, folds against leaks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from dataset_copies import picture

from riftcli.methods.objectives.bce import BinaryCrossEntropy
from riftcli.methods.objectives.cross_entropy import CrossEntropy


def test_effective_weights_are_the_paper_s():
    targets = torch.tensor([0] * 90 + [1] * 9 + [2])
    weights = CrossEntropy(class_weights="effective", beta=0.9).build(targets, 4).class_weights
    plain = torch.tensor([(1 - 0.9) / (1 - 0.9**n) for n in (90, 9, 1)], dtype=torch.float64)
    expected = plain * 100 / (plain * torch.tensor([90, 9, 1])).sum()  # the mean over samples is 1
    torch.testing.assert_close(weights[:3].double(), expected, rtol=1e-5, atol=0)
    assert weights[3] == 1, "a class that never occurs"
    balanced = CrossEntropy(class_weights="balanced").build(targets, 4).class_weights
    torch.testing.assert_close(balanced[:3], 100 / (3 * torch.tensor([90.0, 9.0, 1.0])))
    nearly = CrossEntropy(class_weights="effective", beta=1 - 1e-7).build(targets, 4).class_weights
    torch.testing.assert_close(nearly[:3], balanced[:3], rtol=1e-3, atol=0)


def test_effective_weights_of_positives():
    targets = torch.zeros(100, 3, dtype=torch.uint8)
    targets[:20, 0] = 1
    targets[:, 2] = 1
    weights = BinaryCrossEntropy(class_weights="effective", beta=0.99).build(targets, 3).class_weights
    assert weights[0] == pytest.approx((1 - 0.99**80) / (1 - 0.99**20), rel=1e-5)
    assert weights[1:].tolist() == [1, 1], "no positives, no negatives: nothing to weigh"
    assert BinaryCrossEntropy(class_weights="balanced").build(targets, 3).class_weights[0] == 4
    with pytest.raises(ValueError, match="^beta: must be in"):
        CrossEntropy(beta=1.0)


def test_weights_and_sampler_of_a_run_are_printed_and_saved(rift, tiny_recipe, write_recipe, read_json):
    tiny_recipe["objective"] = {"name": "cross_entropy", "class_weights": "effective"}
    tiny_recipe["train"] |= {"epochs": 1, "sampler": "balanced"}
    code, _, err = rift("finetune", "--recipe", write_recipe(tiny_recipe), "--out", "r")
    assert code == 0, err
    assert "data: classes in train: 0 13, 1 13, 2 12" in err
    assert "class weights: " in err and "sampler: balanced" in err
    saved = read_json("r/metrics.json")["training_data"]
    assert saved["sampler"] == "balanced"
    total = sum(count * saved["class_weights"][name] for name, count in saved["class_counts"].items())
    assert total == pytest.approx(128, rel=1e-4)


def test_cross_validation(rift, tiny_recipe, write_recipe, read_json):
    tiny_recipe["train"]["epochs"] = 1
    recipe = write_recipe(tiny_recipe)
    code, out, err = rift("finetune", "--recipe", recipe, "--folds", 3, "--out", "cv", "--json")
    assert code == 0, err
    report = json.loads(out)
    assert report == read_json("cv/metrics.json")
    folds = [read_json(f"cv/f{i}/metrics.json") for i in range(3)]
    assert report["cross_validation"]["acc"]["values"] == [fold["validation"]["acc"] for fold in folds]
    assert report["metrics"]["acc"]["n"] == 3
    assert len({fold["training_data"]["fingerprint"] for fold in folds}) == 3
    assert [fold["training_data"]["n"] for fold in folds] == [106, 107, 107]
    assert "acc: " in err and "over 3 folds, on the held-out fold" in err
    before = Path("cv/f1/metrics.json").stat().st_mtime_ns
    assert rift("finetune", "--recipe", recipe, "--folds", 3, "--out", "cv")[0] == 0
    assert Path("cv/f1/metrics.json").stat().st_mtime_ns == before, "finished folds are not run again"
    assert rift("finetune", "--recipe", recipe, "--folds", 1)[2] == "error: --folds 1: a cross-validation has at least 2 folds\n"
    assert rift("finetune", "--recipe", recipe, "--folds", 2, "--repeats", 2)[2] == (
        "error: --folds does not go together with --repeats\n"
    )


def test_folds_in_which_a_metric_is_undefined_lose_nothing(rift, tiny_weights, write_recipe, tmp_path, read_json):
    """The folds are patients, and some patients have one class only: AUROC is undefined there."""
    rows = ["image,label,patient"]
    for i in range(48):
        patient = i // 8
        picture(tmp_path / "data" / f"{i}.png", i)
        rows.append(f"{i}.png,{i % 2 if patient < 2 else 0},p{patient}")
    for name in ("train.csv", "test.csv"):
        (tmp_path / "data" / name).write_text("\n".join(rows).replace(".png", ".png") + "\n")
    recipe = {
        "model": {"name": f"local-dir:{tiny_weights}"},
        "data": {
            "format": "csv_table",
            "root": str(tmp_path / "data"),
            "labels": {"train": "train.csv", "test": "test.csv"},
            "label_column": "label",
            "classes": ["a", "b"],
            "group_columns": ["patient"],
            "allow_overlap": True,
            "val": {"fraction": 0.2, "from": "train", "group": "patient"},
        },
        "train": {"epochs": 1, "batch_size": 8, "workers": 0},
        "eval": {"metrics": ["acc", "auroc"], "best": "auroc"},
    }
    code, _, err = rift("finetune", "--recipe", write_recipe(recipe), "--folds", 4, "--out", "cv")
    assert code == 0, err
    report = read_json("cv/metrics.json")["cross_validation"]
    assert None not in report["acc"]["values"], "accuracy was measured in every fold"
    assert None in report["auroc"]["values"] and report["auroc"]["value"] is None and report["auroc"]["reason"]
