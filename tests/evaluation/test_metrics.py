"""Every metric against scikit-learn or a slow loop; undefined is null with a reason."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn import metrics as sk

from riftcli import catalog
from riftcli.evaluation.scores import confusion, score
from riftcli.protocols import Predictions

NAMES = catalog.names("metric")


def multiclass(n: int = 60, classes: int = 4, absent: bool = False) -> Predictions:
    generator = torch.Generator().manual_seed(0)
    targets = torch.arange(n) % (classes - absent)
    logits = torch.randn(n, classes, generator=generator) + 1.5 * torch.nn.functional.one_hot(targets, classes)
    features = torch.randn(n, 8, generator=generator)
    reference = features + 0.5 * torch.randn(n, 8, generator=generator)
    return Predictions(logits, targets, features, [f"c{i}" for i in range(classes)], "multiclass", reference)


def multilabel(absent: bool = False) -> Predictions:
    generator = torch.Generator().manual_seed(1)
    targets = torch.randint(0, 2, (50, 3), generator=generator).to(torch.uint8)
    if absent:
        targets[:, 1] = 0
    logits = torch.randn(50, 3, generator=generator) + targets
    features = torch.randn(50, 8, generator=generator)
    return Predictions(logits, targets, features, ["a", "b", "c"], "multilabel", features * 2)


def value(name: str, seen: Predictions):
    return score([name], seen)[name]["value"]


def test_multiclass_against_scikit_learn():
    seen = multiclass()
    targets, guess = seen.targets.numpy(), seen.logits.argmax(1).numpy()
    probabilities = seen.logits.double().softmax(1).numpy()
    assert value("acc", seen) == pytest.approx(sk.accuracy_score(targets, guess))
    assert value("bacc", seen) == pytest.approx(sk.balanced_accuracy_score(targets, guess))
    assert value("f1", seen) == pytest.approx(sk.f1_score(targets, guess, average="macro"))
    assert value("kappa", seen) == pytest.approx(sk.cohen_kappa_score(targets, guess, weights="quadratic"), abs=1e-6)
    assert value("auroc", seen) == pytest.approx(sk.roc_auc_score(targets, probabilities, multi_class="ovr"), abs=1e-6)
    expected = sk.average_precision_score(np.eye(4)[targets], probabilities, average="macro")
    assert value("map", seen) == pytest.approx(expected, abs=1e-6)
    assert confusion(seen)["counts"] == sk.confusion_matrix(targets, guess).tolist()


def test_multilabel_against_scikit_learn():
    seen = multilabel()
    targets, guess = seen.targets.numpy(), (seen.logits > 0).numpy()
    assert value("acc", seen) == pytest.approx((targets == guess).mean())
    assert value("f1", seen) == pytest.approx(sk.f1_score(targets, guess, average="macro"))
    assert value("auroc", seen) == pytest.approx(sk.roc_auc_score(targets, seen.logits.numpy()), abs=1e-6)
    assert value("map", seen) == pytest.approx(sk.average_precision_score(targets, seen.logits.numpy()), abs=1e-6)
    expected = np.mean([sk.balanced_accuracy_score(targets[:, c], guess[:, c]) for c in range(3)])
    assert value("bacc", seen) == pytest.approx(expected)
    matrix = confusion(seen)
    for c in range(3):
        tn, fp, fn, tp = sk.confusion_matrix(targets[:, c], guess[:, c]).ravel()
        assert [matrix[k][c] for k in ("tn", "fp", "fn", "tp")] == [tn, fp, fn, tp]


def test_ece_is_the_binned_gap():
    seen = multiclass(200)
    confidence, guess = seen.logits.softmax(1).max(1)
    total = 0.0
    for low in np.arange(15) / 15:
        inside = (confidence > low) & (confidence <= low + 1 / 15)
        if inside.any():
            right = (guess == seen.targets)[inside].double().mean()
            total += float(inside.double().mean() * (right - confidence[inside].double().mean()).abs())
    assert value("ece", seen) == pytest.approx(total, abs=1e-5)


def test_a_class_without_positives_is_undefined_not_zero():
    entry = score(["map"], multilabel(absent=True))["map"]
    assert entry["undefined_classes"] == ["b"]
    assert entry["per_class"]["b"] is None
    assert entry["n_defined"] == 2
    assert entry["value_empty_as_zero"] == pytest.approx(entry["value"] * 2 / 3)
    assert score(["auroc"], multiclass(absent=True))["auroc"]["undefined_classes"] == ["c3"]
    assert score(["bacc"], multiclass(absent=True))["bacc"]["n_defined"] == 3


def test_nothing_defined_is_null_with_a_reason():
    seen = multilabel()
    empty = Predictions(seen.logits, torch.zeros(50, 3, dtype=torch.uint8), seen.features, seen.classes, "multilabel")
    entry = score(["map"], empty)["map"]
    assert (entry["value"], entry["reason"]) == (None, "no class has both positives and negatives in this split")
    assert score(["kappa"], seen)["kappa"]["reason"] == "kappa is defined for one label per image"
    constant = Predictions(seen.logits, seen.targets, torch.ones(50, 8), seen.classes, "multilabel", seen.features)
    assert score(["cka"], constant)["cka"]["reason"] == "the features are constant or there are too few samples"


# what is not a share or a correlation
UNBOUNDED = {"nll": np.inf, "brier": 2.0, "procrustes": 2**0.5, "centre_distance": np.inf, "effective_rank": np.inf}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seen", [multiclass(), multilabel()], ids=["multiclass", "multilabel"])
def test_every_metric_says_its_direction_and_its_n(name, seen):
    entry = score([name], seen)[name]
    assert isinstance(entry["higher_is_better"], bool)
    assert entry["n"] == len(seen.targets)
    high = UNBOUNDED.get(name, 1.0)
    assert entry["value"] is None or -1 <= entry["value"] <= high
    assert entry["value"] is not None or entry["reason"]


def test_cka_headline_and_debiased():
    seen = multiclass(200)
    assert value("cka", seen) > value("cka_debiased", seen) > 0
    assert value("cka", multilabel()) == pytest.approx(1)
