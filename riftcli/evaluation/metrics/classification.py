"""Classification metrics, computed by torchmetrics on the gathered logits. All are fractions in [0, 1], kappa in [-1, 1].

A class that a metric cannot be computed for (no positives) is left out of the mean and listed, never counted as 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from riftcli.evaluation.metrics.many_classes import log_sum
from riftcli.protocols import UNKNOWN, Predictions

if TYPE_CHECKING:
    import torch


def _decided(predictions: Predictions) -> torch.Tensor:
    """Hard decisions: arg max, or sigmoid > 0.5 per label; (N,) or (N, C)."""
    multiclass = predictions.task == "multiclass"
    return predictions.logits.argmax(1) if multiclass else (predictions.logits > 0).int()


def _by_class(predictions: Predictions) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Of every class (scores (n,), truth (n,) of 0 and 1), of the images of which it is known.

    Scores are fp64: an fp32 softmax saturates to ties that ranking metrics then break arbitrarily. One class at a time, for
    there may be tens of thousands.
    """
    if predictions.task == "multiclass":
        total = log_sum(predictions.logits)
        for c, logits in enumerate(predictions.logits.T):
            yield (logits.double() - total).exp(), (predictions.targets == c).int()
        return
    for logits, truth in zip(predictions.logits.T, predictions.targets.int().T, strict=True):
        known = truth != UNKNOWN
        yield logits[known].double().sigmoid(), truth[known]


def _counts(predictions: Predictions) -> list[tuple[int, int, int, int]]:
    """Of every class: true positives, false positives, false negatives, true negatives, of the images of which it is known."""
    import torch

    decided, count = _decided(predictions), len(predictions.classes)
    if predictions.task == "multiclass":
        truth, n = predictions.targets.long(), len(predictions.targets)
        hits = truth[decided == truth].bincount(minlength=count)
        false, missed = decided.bincount(minlength=count) - hits, truth.bincount(minlength=count) - hits
        cells = [hits, false, missed, n - hits - false - missed]
    else:
        yes, no, called = predictions.targets == 1, predictions.targets == 0, decided.bool()
        cells = [(yes & called).sum(0), (no & called).sum(0), (yes & ~called).sum(0), (no & ~called).sum(0)]
    return [tuple(row) for row in torch.stack(cells, 1).tolist()]


def _right(predictions: Predictions) -> torch.Tensor:
    """1 where a decision is right, 0 where it is wrong, NaN where nobody knows; (N,) or (N, C)."""
    import torch

    right = (_decided(predictions) == predictions.targets).double()
    if predictions.task == "multiclass":
        return right
    return torch.where(predictions.targets == UNKNOWN, torch.nan, right)


def _mean_of_defined(
    values: list[float | None], classes: list[str], why: str = "no class has both positives and negatives in this split"
) -> dict[str, Any]:
    defined = [value for value in values if value is not None]
    undefined = [name for name, value in zip(classes, values, strict=True) if value is None]
    result: dict[str, Any] = {
        "value": sum(defined) / len(defined) if defined else None,
        "per_class": dict(zip(classes, values, strict=True)),
        "n_defined": len(defined),
    }
    if undefined:
        result["undefined_classes"] = undefined
    if not defined:
        result["reason"] = why
    return result


@dataclass(frozen=True)
class Accuracy:
    """Top-1 accuracy; for multi-label data the share of correct labels at a threshold of 0.5."""

    higher_is_better: ClassVar[bool] = True
    needs_pretrained: ClassVar[bool] = False

    def compute(self, predictions: Predictions) -> dict[str, Any]:
        """Share of correct decisions."""
        right = _right(predictions)
        if right.isnan().all():
            return {"value": None, "reason": "no label is known"}
        return {"value": float(right.nanmean())}


@dataclass(frozen=True)
class TopFive:
    """Share of images whose class is among the five likeliest; of one label per image and more than five classes."""

    higher_is_better: ClassVar[bool] = True
    needs_pretrained: ClassVar[bool] = False
    k: ClassVar[int] = 5

    def compute(self, predictions: Predictions) -> dict[str, Any]:
        """Of classes that are equally likely, those that come first count."""
        import torch

        if predictions.task == "multilabel":
            return {"value": None, "reason": "top-5 accuracy is defined for one label per image"}
        if len(predictions.classes) <= self.k:
            return {"value": None, "reason": "no more than five classes"}
        own = predictions.targets.long()[:, None]
        logit = predictions.logits.gather(1, own)
        first = (predictions.logits == logit) & (torch.arange(len(predictions.classes)) < own)
        before = (predictions.logits > logit).sum(1) + first.sum(1)
        return {"value": float((before < self.k).double().mean()), "k": self.k}


@dataclass(frozen=True)
class BalancedAccuracy:
    """Mean over classes of sensitivity; for multi-label data of (sensitivity + specificity) / 2."""

    higher_is_better: ClassVar[bool] = True
    needs_pretrained: ClassVar[bool] = False

    def compute(self, predictions: Predictions) -> dict[str, Any]:
        """Per class, then the mean over the classes that occur."""
        values: list[float | None] = []
        for tp, fp, fn, tn in _counts(predictions):
            sensitivity = tp / (tp + fn) if tp + fn else None
            specificity = tn / (tn + fp) if tn + fp else None
            if predictions.task == "multiclass":
                values.append(sensitivity)
            else:
                both = sensitivity is not None and specificity is not None
                values.append((sensitivity + specificity) / 2 if both else None)  # type: ignore[operator]
        return _mean_of_defined(values, predictions.classes)


@dataclass(frozen=True)
class MacroF1:
    """Unweighted mean over classes of F1; a class that neither occurs nor is predicted is undefined."""

    higher_is_better: ClassVar[bool] = True
    needs_pretrained: ClassVar[bool] = False

    def compute(self, predictions: Predictions) -> dict[str, Any]:
        """F1 = 2 TP / (2 TP + FP + FN) per class."""
        values = [2 * tp / (2 * tp + fp + fn) if tp + fp + fn else None for tp, fp, fn, _ in _counts(predictions)]
        return _mean_of_defined(values, predictions.classes, "no class occurs or is predicted in this split")


@dataclass(frozen=True)
class WorstGroup:
    """Accuracy of the group of samples that fares worst (FMoW's worst region); `eval.group` names the column."""

    higher_is_better: ClassVar[bool] = True
    needs_pretrained: ClassVar[bool] = False

    def compute(self, predictions: Predictions) -> dict[str, Any]:
        """Accuracy per group, and the lowest of them."""
        if predictions.groups is None:
            return {"value": None, "reason": "no groups: name a column of the data as eval.group"}
        right = _right(predictions)
        right = right if right.dim() == 1 else right.nanmean(1)
        per_group: dict[str, list[float]] = {}
        for name, value in zip(predictions.groups, right.tolist(), strict=True):
            if value != value:
                continue  # of an image without a label that is known
            per_group.setdefault(name, []).append(value)
        per_group.pop("", None)  # samples of no group: no region of the world, for one
        if not per_group:
            return {"value": None, "reason": "every sample's group is empty, or no label is known"}
        means = {name: sum(values) / len(values) for name, values in sorted(per_group.items())}
        worst = min(means, key=lambda name: means[name])
        return {"value": means[worst], "group": worst, "per_group": means}


@dataclass(frozen=True)
class Auroc:
    """Macro one-vs-rest area under the ROC curve."""

    higher_is_better: ClassVar[bool] = True
    needs_pretrained: ClassVar[bool] = False

    def compute(self, predictions: Predictions) -> dict[str, Any]:
        """Per class with both positives and negatives, then the mean."""
        from torchmetrics.functional.classification import binary_auroc

        values: list[float | None] = []
        for scores, truth in _by_class(predictions):
            mixed = 0 < int(truth.sum()) < len(truth)
            values.append(float(binary_auroc(scores, truth)) if mixed else None)
        return _mean_of_defined(values, predictions.classes)


@dataclass(frozen=True)
class MeanAveragePrecision:
    """Macro mean over classes of average precision (no interpolation), over the classes that have positives.

    Some code bases count a class without positives as 0; that number is given as `value_empty_as_zero`.
    """

    higher_is_better: ClassVar[bool] = True
    needs_pretrained: ClassVar[bool] = False

    def compute(self, predictions: Predictions) -> dict[str, Any]:
        """Average precision per class with positives, then the mean."""
        from torchmetrics.functional.classification import binary_average_precision

        values: list[float | None] = [
            float(binary_average_precision(scores, truth)) if truth.any() else None for scores, truth in _by_class(predictions)
        ]
        result = _mean_of_defined(values, predictions.classes)
        result["value_empty_as_zero"] = sum(v or 0.0 for v in values) / len(values)
        return result


@dataclass(frozen=True)
class Kappa:
    """Cohen's kappa, quadratic weights (the APTOS metric); multi-class only."""

    higher_is_better: ClassVar[bool] = True
    needs_pretrained: ClassVar[bool] = False

    def compute(self, predictions: Predictions) -> dict[str, Any]:
        """Agreement beyond chance; null for multi-label data or when only one class occurs."""
        if predictions.task == "multilabel":
            return {"value": None, "reason": "kappa is defined for one label per image"}
        if len(predictions.classes) < 2:
            return {"value": None, "reason": "a single class in targets and predictions"}
        given, truth = _decided(predictions).double(), predictions.targets.double()
        apart = (given - truth).square().mean()
        by_chance = given.square().mean() + truth.square().mean() - 2 * given.mean() * truth.mean()
        if by_chance == 0:
            return {"value": None, "reason": "a single class in targets and predictions"}
        return {"value": float(1 - apart / by_chance), "weights": "quadratic"}
