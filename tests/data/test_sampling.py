"""Balanced sampling and folds: seeded, the same on any number of ranks, groups kept whole."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from riftcli.data.batches import balancing_weights, epoch_batches, sample_seed
from riftcli.data.holdout import hold_out
from riftcli.data.loader import ImageDataset
from riftcli.data.split import Split
from riftcli.errors import DataError
from riftcli.recipe.data_sources import SplitSpec


def sample(count: int, classes: int = 3, task: str = "multiclass") -> Split:
    targets = np.arange(count) % classes
    if task == "multilabel":
        targets = np.eye(classes, dtype="uint8")[targets]
    groups = {"patient": [f"p{i // 4}" for i in range(count)]}
    return Split("train", [f"i{i}" for i in range(count)], targets, list("abcdef")[:classes], lambda i: None, task, groups)


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
    data = ImageDataset(replace(split, read=lambda i: i), lambda image, seed: torch.tensor([image, seed]), seed=1)
    items = [data[0, code] for code in often]
    assert {int(pixels[0]) for pixels, _, _ in items} == {19} == {index for _, _, index in items}
    assert len({int(pixels[1]) for pixels, _, _ in items}) == len(often), "each with a seed of its own"
    plain = data[0, 19][0][1]
    assert int(plain) == sample_seed(1, 0, "i19"), "the first time it depends on (seed, epoch, id) alone"


def test_balanced_sampling_of_multilabel_rows():
    targets = torch.zeros(100, 2, dtype=torch.uint8)
    targets[0] = torch.tensor([1, 1])
    targets[1:11, 0] = 1
    weights = balancing_weights(targets)
    assert weights[50] == pytest.approx(1 / 89), "rows without a finding are a class"
    assert weights[5] == pytest.approx(1 / 11)
    assert weights[0] == pytest.approx((1 / 11 + 1) / 2), "the mean over its classes"


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
