"""What the measures of two models on the same images have in common: which rows, and the form of an entry."""

from __future__ import annotations

from typing import Any

from riftcli.protocols import Predictions

MANY = 5000  # samples of the measures that need an N x N table; more are thinned out, evenly


def pair(predictions: Predictions, at_most: int | None = None) -> Any:
    """A functional.paired.Paired: the reference's features and the model's; of more than `at_most` samples every so-many-th. What
    one measure makes of it, the next one finds.
    """
    from riftcli.functional.paired import Paired
    from riftcli.functional.thinning import thinned

    assert predictions.pretrained is not None, "a similarity needs the features of two models"
    kept = thinned(len(predictions.features), at_most)
    if len(kept) not in predictions.shared:
        before, after = predictions.pretrained, predictions.features
        if len(kept) < len(after):
            before, after = before[kept], after[kept]
        predictions.shared[len(kept)] = Paired(before, after, predictions.device)
    return predictions.shared[len(kept)]


def entry(
    value: float | None, samples: int, why: str = "the features are constant or there are too few samples"
) -> dict[str, Any]:
    """What a measure says: its value, of how many samples, and why there is none."""
    return {"value": value, "reference": "pretrained", "samples": samples} | ({"reason": why} if value is None else {})
