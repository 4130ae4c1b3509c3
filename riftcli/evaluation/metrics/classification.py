"""Classification metrics, computed by torchmetrics on the gathered logits. All are fractions in [0, 1], kappa in [-1, 1].

A class that a metric cannot be computed for (no positives) is left out of the mean and listed, never counted as 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from riftcli.protocols import UNKNOWN, Predictions

if TYPE_CHECKING:
    import torch


def _decided(predictions: Predictions) -> torch.Tensor:
    """Hard decisions: arg max, or sigmoid > 0.5 per label; (N,) or (N, C)."""
    multiclass = predictions.task == "multiclass"
    return predictions.logits.argmax(1) if multiclass else (predictions.logits > 0).int()


def _scores(predictions: Predictions) -> torch.Tensor:
    """Probabilities in fp64: fp32 softmax saturates to ties that ranking metrics then break arbitrarily; (N, C)."""
    logits = predictions.logits.double()
    return logits.softmax(1) if predictions.task == "multiclass" else logits.sigmoid()


def _one_hot(predictions: Predictions) -> torch.Tensor:
    """(N, C) of 0 and 1, and UNKNOWN where there are several labels."""
    import torch

    if predictions.task == "multilabel":
        return predictions.targets.int()
    return torch.nn.functional.one_hot(predictions.targets.long(), len(predictions.classes)).int()


def _by_class(predictions: Predictions) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Of every class (scores (n,), truth (n,) of 0 and 1), of the images of which it is known."""
    for scores, truth in zip(_scores(predictions).T, _one_hot(predictions).T, strict=True):
        known = truth != UNKNOWN
        yield scores[known], truth[known]


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
class BalancedAccuracy:
    """Mean over classes of sensitivity; for multi-label data of (sensitivity + specificity) / 2."""

    higher_is_better: ClassVar[bool] = True
    needs_pretrained: ClassVar[bool] = False

    def compute(self, predictions: Predictions) -> dict[str, Any]:
        """Per class, then the mean over the classes that occur."""
        import torch

        decided, truth = _decided(predictions), _one_hot(predictions)
        if predictions.task == "multiclass":
            decided = torch.nn.functional.one_hot(decided, len(predictions.classes))
        decided = decided.bool()
        values: list[float | None] = []
        for c in range(truth.shape[1]):
            positive, negative = truth[:, c] == 1, truth[:, c] == 0
            sensitivity = float(decided[positive, c].double().mean()) if positive.any() else None
            specificity = float((~decided[negative, c]).double().mean()) if negative.any() else None
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
        import torch

        decided, truth = _decided(predictions), _one_hot(predictions)
        if predictions.task == "multiclass":
            decided = torch.nn.functional.one_hot(decided, len(predictions.classes))
        values: list[float | None] = []
        for guess, own in zip(decided.T, truth.T, strict=True):
            called, there = (rows[own != UNKNOWN] == 1 for rows in (guess, own))
            hits, misses = int((called & there).sum()), int((called ^ there).sum())
            values.append(2 * hits / (2 * hits + misses) if hits + misses else None)
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
        from torchmetrics.functional.classification import multiclass_cohen_kappa

        if predictions.task == "multilabel":
            return {"value": None, "reason": "kappa is defined for one label per image"}
        if len(predictions.classes) < 2:
            return {"value": None, "reason": "a single class in targets and predictions"}
        value = float(
            multiclass_cohen_kappa(
                _decided(predictions), predictions.targets.long(), len(predictions.classes), weights="quadratic"
            )
        )
        if value != value:
            return {"value": None, "reason": "a single class in targets and predictions"}
        return {"value": value, "weights": "quadratic"}
