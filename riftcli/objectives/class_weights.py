"""Weights against class imbalance, counted on the training split."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

ClassWeights = Literal["none", "balanced"] | list[float]


def at_least_fp32(logits: torch.Tensor) -> torch.Tensor:
    """Half precision widened; fp64 kept: a line search stalls on a loss that is rounded to fp32."""
    import torch

    return logits if logits.dtype == torch.float64 else logits.float()


def check_weights(weights: ClassWeights) -> None:
    """Raise ValueError for a list that is not all positive."""
    if isinstance(weights, list) and (not weights or min(weights) <= 0):
        raise ValueError("class_weights: a list must hold one positive number per class")


def listed(weights: list[float], classes: int) -> torch.Tensor:
    """Given weights as a tensor (C,); raise DataError when there is not one per class."""
    import torch

    from riftcli.errors import DataError

    if len(weights) != classes:
        raise DataError(
            f"objective.class_weights: {len(weights)} weights were given and the data has {classes} classes; "
            "give one per class, in the order of the classes, or use 'balanced'"
        )
    return torch.tensor(weights, dtype=torch.float32)


def resolve(weights: ClassWeights, counts: torch.Tensor) -> torch.Tensor | None:
    """Class weights as a tensor, or None for no weighting.

    balanced: N / (C * count), so that every class contributes equally and the mean weight over samples is 1. A class
    that never occurs gets weight 1 (it is never used in the mean). counts: (C,) samples per class.
    """
    import torch

    if weights == "none":
        return None
    if weights == "balanced":
        balanced = counts.sum() / (len(counts) * counts.clamp_min(1))
        return torch.where(counts > 0, balanced, torch.ones_like(balanced))
    assert isinstance(weights, list)
    return listed(weights, len(counts))
