"""Difference vector equalization: images and texts may move, but all by the same vector."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from riftcli.methods.regularizers.pair_penalty import check_settings
from riftcli.protocols import Pairs, RegularizerContext

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Dive:
    """strength * (average vector loss + pairwise vector loss) over image-caption pairs (DiVE, Suzuki et al. 2026, Eq. 4 to 9).

    u = f(x) - f_0(x), v = g(t) - g_0(t) of unit-length embeddings; the average vector loss is mean ||u - m||^2 + ||v - m||^2 with
    a running mean m of (u + v) / 2 that starts at zero, the pairwise vector loss is mean ||u - v||^2. All in fp32.

    strength: 1000 (of 100 to 5000) is the published one: difference vectors are some thousandths long. alpha: how much of m is
      kept at a step; m includes the batch at hand. average, pairwise: the two losses.
    mean_gradient: whether m carries the gradient of the batch at hand, which the paper leaves open; it is one part in a hundred.
    on: reference (pairs of the recipe's `reference`, as published) | task (the task's own images and texts).
    """

    strength: float = 1000.0
    alpha: float = 0.99
    average: bool = True
    pairwise: bool = True
    mean_gradient: bool = False
    on: Literal["reference", "task"] = "reference"
    texts: ClassVar[str] = "sample"

    def __post_init__(self) -> None:
        check_settings(self)

    def build(self, context: RegularizerContext) -> Any:
        """None when strength is 0."""
        if self.strength == 0:
            return None
        import torch

        from riftcli.methods.regularizers.pair_penalty import EqualDifferences

        return EqualDifferences(self, torch.zeros(context.feature_dim, device=context.device))

    def differences(self, features: Pairs, pretrained: Pairs) -> tuple[torch.Tensor, torch.Tensor]:
        """(u (n, E), v (n, E))."""
        return features.images - pretrained.images, features.texts - pretrained.texts
