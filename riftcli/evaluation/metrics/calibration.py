"""Does the model know when it is wrong."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from riftcli.protocols import Predictions


def confidences(predictions: Predictions) -> tuple[Any, Any]:
    """(confidence, right or wrong), both (N, K): the largest softmax value, K = 1; or the positive probability per label."""
    if predictions.task == "multiclass":
        confidence, guess = predictions.logits.double().softmax(1).max(1)
        return confidence[:, None], (guess == predictions.targets).double()[:, None]
    return predictions.logits.double().sigmoid(), predictions.targets.double()


def _calibration_error(predictions: Predictions, bins: int, adaptive: bool) -> dict[str, Any]:
    from riftcli.functional import calibration

    confidence, correct = confidences(predictions)
    each = [calibration.reliability(confidence[:, c], correct[:, c], bins, adaptive).error for c in range(confidence.shape[1])]
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
            return {"value": float((predictions.logits.double().sigmoid() - predictions.targets.double()).square().mean())}
        truth = torch.nn.functional.one_hot(predictions.targets.long(), predictions.logits.shape[1]).double()
        return {"value": float((predictions.logits.double().softmax(1) - truth).square().sum(1).mean())}


@dataclass(frozen=True)
class NegativeLogLikelihood:
    """Mean negative log-likelihood of the true class, in nats; multi-label: binary cross entropy, mean over labels."""

    higher_is_better: ClassVar[bool] = False
    needs_pretrained: ClassVar[bool] = False

    def compute(self, predictions: Predictions) -> dict[str, Any]:
        """What temperature scaling minimises on validation."""
        from riftcli.functional import calibration

        return {"value": float(calibration.negative_log_likelihood(predictions.logits, predictions.targets))}
