"""Class imbalance and cross-validation: weights against their definition, sampling against its seed, folds against leaks."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from dataset_copies import picture

from riftcli.data.batches import balancing_weights, epoch_batches, sample_seed
from riftcli.data.holdout import hold_out
from riftcli.data.loader import ImageDataset
from riftcli.data.split import Split
from riftcli.errors import DataError
from riftcli.methods.objectives.bce import BinaryCrossEntropy
from riftcli.methods.objectives.cross_entropy import CrossEntropy
from riftcli.recipe.sections import SplitSpec


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


def test_balanced_sampling_is_seeded_and_the_same_on_any_number_of_ranks():
    targets = torch.tensor([0] * 180 + [1] * 15 + [2] * 5)
    weights = balancing_weights(targets)
    whole = epoch_batches(200, 20, seed=1, epoch=2, rank=0, ranks=1, weights=weights)
    parts = [epoch_batches(200, 20, seed=1, epoch=2, rank=r, ranks=2, weights=weights) for r in range(2)]
    assert [a + b for a, b in zip(*parts, strict=True)] == whole
    assert epoch_batches(200, 20, 1, 2, 0, 1, first_step=4, weights=weights) == whole[4:]
    assert epoch_batches(200, 20, 1, 3, 0, 1, weights=weights) != whole
    drawn = [i % 200 for epoch in range(50) for batch in epoch_batches(200, 20, 1, epoch, 0, 1, weights=weights) for i in batch]
    share = targets[drawn].bincount() / len(drawn)
    assert (share - 1 / 3).abs().max() < 0.02


def test_a_repeated_sample_is_augmented_anew():
    split = sample(20)
    weights = torch.tensor([1.0] * 18 + [50.0, 50.0])
    codes = [i for batch in epoch_batches(20, 10, seed=0, epoch=0, rank=0, ranks=1, weights=weights) for i in batch]
    often = [code for code in codes if code % 20 == 19]
    assert often == [19 + 20 * k for k in range(len(often))] and len(often) > 3, "repetitions are numbered in order"
    data = ImageDataset(replace(split, read=lambda i: i), lambda image, seed: torch.tensor([image, seed]), seed=1, epoch=0)
    items = [data[code] for code in often]
    assert {int(pixels[0]) for pixels, _, _ in items} == {19} == {index for _, _, index in items}
    assert len({int(pixels[1]) for pixels, _, _ in items}) == len(often), "each with a seed of its own"
    plain = data[19][0][1]
    assert int(plain) == sample_seed(1, 0, "i19"), "the first time it depends on (seed, epoch, id) alone"


def test_balanced_sampling_of_multilabel_rows():
    targets = torch.zeros(100, 2, dtype=torch.uint8)
    targets[0] = torch.tensor([1, 1])
    targets[1:11, 0] = 1
    weights = balancing_weights(targets)
    assert weights[50] == pytest.approx(1 / 89), "rows without a finding are a class"
    assert weights[5] == pytest.approx(1 / 11)
    assert weights[0] == pytest.approx((1 / 11 + 1) / 2), "the mean over its classes"


def sample(count: int, classes: int = 3, task: str = "multiclass") -> Split:
    targets = np.arange(count) % classes
    if task == "multilabel":
        targets = np.eye(classes, dtype="uint8")[targets]
    groups = {"patient": [f"p{i // 4}" for i in range(count)]}
    return Split("train", [f"i{i}" for i in range(count)], targets, list("abcdef")[:classes], lambda i: None, task, groups)


@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
@pytest.mark.parametrize("group", [None, "patient"])
def test_folds_are_a_partition(task, group):
    split = sample(60, task=task)
    parts = [hold_out(split, SplitSpec("train", folds=5, fold=i, group=group, seed=3)) for i in range(5)]
    held = [name for _, val in parts for name in val.ids]
    assert sorted(held) == sorted(split.ids)
    for rest, val in parts:
        assert sorted(rest.ids + val.ids) == sorted(split.ids)
        if group:
            assert not set(rest.groups[group]) & set(val.groups[group])
        elif task == "multiclass":
            assert np.bincount(val.targets).tolist() == [4, 4, 4], "stratified"
    assert hold_out(split, SplitSpec("train", folds=5, fold=0, group=group, seed=3))[1].ids == parts[0][1].ids


@pytest.mark.parametrize(
    ("count", "spec", "message"),
    [
        (3, SplitSpec("train", folds=5), "data.val.folds 5: there are only 3 samples; use fewer folds"),
        (9, SplitSpec("train", folds=5), "data.val.folds 5: class 'a' has only 3 samples, so some folds would have none; "
         "use fewer folds"),
        (12, SplitSpec("train", folds=5, group="patient"), "data.val.folds 5: there are only 3 groups of 'patient'; "
         "use fewer folds"),
        (12, SplitSpec("train", fraction=0.95, group="patient"), "data.val.fraction 0.95: With n_samples=3, test_size=0.95 and "
         "train_size=None, the resulting train set will be empty. Adjust any of the aforementioned parameters."),
    ],
)  # fmt: skip
def test_too_many_folds(count, spec, message):
    with pytest.raises(DataError) as caught:
        hold_out(sample(count), spec)
    assert str(caught.value) == message


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
