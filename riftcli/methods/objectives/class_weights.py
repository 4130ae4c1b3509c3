"""Weights against class imbalance, counted on the training split."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

ClassWeights = Literal["none", "balanced", "effective"] | list[float]


class OnDevices:
    """A constant tensor or None, copied to a device once: a copy in every step would be waited for."""

    def __init__(self, value: torch.Tensor | None) -> None:
        self.value = value
        self._copies: dict[torch.device, torch.Tensor] = {}

    def on(self, device: torch.device) -> torch.Tensor:
        """The copy that is there."""
        assert self.value is not None
        if device not in self._copies:
            self._copies[device] = self.value.to(device)
        return self._copies[device]


def check_weights(weights: ClassWeights, beta: float) -> None:
    """Raise ValueError for a list that is not all positive, or a beta outside (0, 1)."""
    if not 0 < beta < 1:
        raise ValueError("beta: must be in (0, 1)")
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


def effective_number(counts: torch.Tensor, beta: float) -> torch.Tensor:
    """(1 - beta^n) / (1 - beta): how many different samples n samples are worth (Cui et al. 2019, Eq. 2)."""
    import torch

    wide = counts.double()
    return ((1 - torch.pow(torch.tensor(beta, dtype=torch.float64), wide)) / (1 - beta)).float()


def resolve(weights: ClassWeights, counts: torch.Tensor, beta: float) -> torch.Tensor | None:
    """Class weights as a tensor (C,), or None for no weighting; the mean weight over the samples is 1.

    balanced: N / (C * count), so that every class contributes equally. effective: proportional to the inverse of the
    effective number of samples. A class that never occurs gets weight 1 (it is never used in the mean).
    counts: (C,) samples per class.
    """
    import torch

    if weights == "none":
        return None
    if isinstance(weights, list):
        return listed(weights, len(counts))
    present = counts > 0
    worth = counts if weights == "balanced" else effective_number(counts, beta)
    inverse = torch.where(present, 1 / worth.clamp_min(1e-12), torch.zeros_like(worth))
    scaled = inverse * counts.sum() / (inverse * counts).sum()
    return torch.where(present, scaled, torch.ones_like(scaled))
