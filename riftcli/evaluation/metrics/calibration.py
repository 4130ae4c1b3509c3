"""Does the model know when it is wrong."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from riftcli.evaluation.metrics.many_classes import likeliest, log_sum, parts
from riftcli.protocols import UNKNOWN, Predictions


def confidences(predictions: Predictions) -> list[tuple[Any, Any]]:
    """[(confidence, right or wrong)], both (n,): one pair, with the largest softmax value; or one per label, with its
    probability, of the images of which the label is known.
    """
    if predictions.task == "multiclass":
        confidence, guess = likeliest(predictions.logits)
        return [(confidence, (guess == predictions.targets).double())]
    known = predictions.targets != UNKNOWN
    columns = zip(predictions.logits.double().sigmoid().T, predictions.targets.double().T, known.T, strict=True)
    return [(confidence[rows], truth[rows]) for confidence, truth, rows in columns]


def _calibration_error(predictions: Predictions, bins: int, adaptive: bool) -> dict[str, Any]:
    from riftcli.functional import calibration

    pairs = [pair for pair in confidences(predictions) if len(pair[0])]
    if not pairs:
        return {"value": None, "reason": "no label is known"}
    each = [calibration.reliability(*pair, bins, adaptive).error for pair in pairs]
    return {"value": sum(each) / len(each), "bins": bins}


@dataclass(frozen=True)
class ExpectedCalibrationError:
    """Expected calibration error, 15 equal-width bins (similarity-space paper Eq. 2); lower is better.

    Multi-class: confidence is the largest softmax value. Multi-label: binary ECE per label, then the mean.
    """

    higher_is_better: ClassVar[bool] = False
    needs_pretrained: ClassVar[bool] = False
    bins: ClassVar[int] = 15

    def compute(self, predictions: Predictions) -> dict[str, Any]:
        """Sum over bins of share * |accuracy - confidence|."""
        return _calibration_error(predictions, self.bins, adaptive=False)


@dataclass(frozen=True)
class AdaptiveCalibrationError:
    """Expected calibration error over 15 bins with equally many predictions each (Nguyen and O'Connor 2015)."""

    higher_is_better: ClassVar[bool] = False
    needs_pretrained: ClassVar[bool] = False
    bins: ClassVar[int] = 15

    def compute(self, predictions: Predictions) -> dict[str, Any]:
        """As ece, but no bin is nearly empty."""
        return _calibration_error(predictions, self.bins, adaptive=True)


@dataclass(frozen=True)
class Brier:
    """Brier score: squared distance of probabilities and truth, summed over classes (in [0, 2]), averaged over samples.

    Multi-label: the mean over labels of the squared error, in [0, 1].
    """

    higher_is_better: ClassVar[bool] = False
    needs_pretrained: ClassVar[bool] = False

    def compute(self, predictions: Predictions) -> dict[str, Any]:
        """A proper score: it rewards both calibration and sharpness."""
        import torch

        if predictions.task == "multilabel":
            known = predictions.targets != UNKNOWN
            wrong = (predictions.logits.double().sigmoid() - predictions.targets.double())[known].square()
            return {"value": float(wrong.mean())} if len(wrong) else {"value": None, "reason": "no label is known"}
        squares = torch.cat([some.softmax(1).square().sum(1) for some in parts(predictions.logits)])
        own = predictions.logits.gather(1, predictions.targets.long()[:, None])[:, 0].double()
        return {"value": float((squares - 2 * (own - log_sum(predictions.logits)).exp() + 1).mean())}


@dataclass(frozen=True)
class NegativeLogLikelihood:
    """Mean negative log-likelihood of the true class, in nats; multi-label: binary cross entropy, mean over labels."""

    higher_is_better: ClassVar[bool] = False
    needs_pretrained: ClassVar[bool] = False

    def compute(self, predictions: Predictions) -> dict[str, Any]:
        """What temperature scaling minimises on validation."""
        from riftcli.functional import calibration

        if predictions.task == "multilabel" and bool((predictions.targets == UNKNOWN).all()):
            return {"value": None, "reason": "no label is known"}
        return {"value": float(calibration.negative_log_likelihood(predictions.logits, predictions.targets))}
