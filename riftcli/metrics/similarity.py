"""How close the features still are to the pretrained model's, on the same images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from riftcli.protocols import Predictions


def _cka(predictions: Predictions, debiased: bool) -> dict[str, Any]:
    from riftcli.similarity.cka import cka

    assert predictions.reference is not None, "CKA needs the pretrained features"
    value = cka(predictions.reference, predictions.features, debiased=debiased)
    result: dict[str, Any] = {
        "value": value,
        "reference": "pretrained",
        "estimator": "debiased" if debiased else "biased",
    }
    if value is None:
        result["reason"] = "the features are constant or there are too few samples"
    return result


@dataclass(frozen=True)
class Cka:
    """Biased linear CKA to the pretrained model: `Sim`, the papers' headline."""

    higher_is_better: ClassVar[bool] = True
    needs_reference: ClassVar[bool] = True

    def compute(self, predictions: Predictions) -> dict[str, Any]:
        """Streamed in fp64 over the whole split."""
        return _cka(predictions, debiased=False)


@dataclass(frozen=True)
class CkaDebiased:
    """Debiased linear CKA: comparable across split sizes and feature dimensions."""

    higher_is_better: ClassVar[bool] = True
    needs_reference: ClassVar[bool] = True

    def compute(self, predictions: Predictions) -> dict[str, Any]:
        """Streamed in fp64 over the whole split."""
        return _cka(predictions, debiased=True)
