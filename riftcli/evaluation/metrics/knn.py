"""What the features know without the head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from riftcli.protocols import Predictions


@dataclass(frozen=True)
class Knn:
    """Leave-one-out 20-nearest-neighbour accuracy within the split (cosine, votes exp(similarity / 0.07))."""

    higher_is_better: ClassVar[bool] = True
    needs_pretrained: ClassVar[bool] = False
    k: ClassVar[int] = 20

    def compute(self, predictions: Predictions) -> dict[str, Any]:
        """One label per image only; `rift knn` has banks, other data and other k."""
        from riftcli.functional.knn import knn_accuracy, undecided

        if predictions.task != "multiclass":
            return {"value": None, "reason": "kNN is defined for one label per image"}
        if len(predictions.targets) < 2:
            return {"value": None, "reason": "too few samples"}
        why = undecided(predictions.features, predictions.targets)
        if why:
            return {"value": None, "reason": why}
        return {"value": knn_accuracy(predictions.features, predictions.targets, k=self.k), "k": self.k}
