"""Does the model know when it is wrong."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from riftcli.protocols import Predictions


@dataclass(frozen=True)
class ExpectedCalibrationError:
    """Expected calibration error, 15 equal-width bins (similarity-space paper Eq. 2); lower is better.

    Multi-class: confidence is the largest softmax value. Multi-label: binary ECE per label, then the mean.
    """

    higher_is_better: ClassVar[bool] = False
    needs_reference: ClassVar[bool] = False
    bins: ClassVar[int] = 15

    def compute(self, predictions: Predictions) -> dict[str, Any]:
        """Sum over bins of share * |accuracy - confidence|."""
        from torchmetrics.functional.classification import binary_calibration_error, multiclass_calibration_error

        if predictions.task == "multiclass":
            value = multiclass_calibration_error(
                predictions.logits.softmax(1), predictions.targets.long(), len(predictions.classes), n_bins=self.bins
            )
            return {"value": float(value), "bins": self.bins}
        scores = predictions.logits.sigmoid()
        each = [
            float(binary_calibration_error(scores[:, c], predictions.targets[:, c].int(), n_bins=self.bins))
            for c in range(scores.shape[1])
        ]
        return {"value": sum(each) / len(each), "bins": self.bins}
