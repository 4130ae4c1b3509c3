"""Difference vector equalization: images and texts may move, but all by the same vector."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from riftcli.methods.regularizers.pair_penalty import DifferenceSettings
from riftcli.protocols import Pairs, RegularizerContext

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Dive(DifferenceSettings):
    """strength * (average vector loss + pairwise vector loss) over image-caption pairs (DiVE, Suzuki et al. 2026, Eq. 4 to 9).

    u = f(x) - f_0(x), v = g(t) - g_0(t) of unit-length embeddings; the average vector loss is mean ||u - m||^2 + ||v - m||^2 with
    a running mean m of (u + v) / 2 that starts at zero, the pairwise vector loss is mean ||u - v||^2. All in fp32.

    strength: 1000 (of 100 to 5000) is the published one: difference vectors are some thousandths long. alpha: how much of m is
      kept at a step; m includes the batch at hand. average, pairwise: the two losses.
    mean_gradient: whether m carries the gradient of the batch at hand, which the paper leaves open; it is one part in a hundred.
    on: reference (pairs of the recipe's `reference`, as published) | task (the task's own images and texts).
    """

    def first_mean(self, context: RegularizerContext) -> torch.Tensor:
        """(E,) before the first batch."""
        import torch

        return torch.zeros(context.feature_dim, device=context.device)

    def differences(self, features: Pairs, pretrained: Pairs) -> tuple[torch.Tensor, torch.Tensor]:
        """(u (n, E), v (n, E))."""
        return features.images - pretrained.images, features.texts - pretrained.texts
