"""What the measures of two models on the same images have in common: which rows, and the form of an entry."""

from __future__ import annotations

from typing import Any

from riftcli.protocols import Predictions

MANY = 5000  # samples of the measures that need an N x N table; more are thinned out, evenly


def pair(predictions: Predictions, at_most: int | None = None) -> tuple[Any, Any]:
    """(reference, features), both (n, D); of more than `at_most` samples every so-many-th."""
    from riftcli.functional.thinning import thinned

    assert predictions.pretrained is not None, "a similarity needs the features of two models"
    kept = thinned(len(predictions.features), at_most)
    return predictions.pretrained[kept], predictions.features[kept]


def entry(
    value: float | None, samples: int, why: str = "the features are constant or there are too few samples"
) -> dict[str, Any]:
    """What a measure says: its value, of how many samples, and why there is none."""
    return {"value": value, "reference": "pretrained", "samples": samples} | ({"reason": why} if value is None else {})
