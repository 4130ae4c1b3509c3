"""DiVE's comparison: the cosines of images and texts to their pretrained selves may change, but all alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from riftcli.methods.regularizers.pair_penalty import DifferenceSettings
from riftcli.protocols import Pairs, RegularizerContext

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Cosine(DifferenceSettings):
    """As dive, with u = f(x) . f_0(x) and v = g(t) . g_0(t) in place of difference vectors (DiVE Eq. 10 and 11, Tab. 7).

    start: of the running mean, which the paper does not state: one (where every cosine starts) | zero (as that of dive, and the
      first steps then pull every cosine towards 0). strength, alpha, average, pairwise, mean_gradient, on: as of dive.
    """

    start: Literal["one", "zero"] = "one"

    def first_mean(self, context: RegularizerContext) -> torch.Tensor:
        """(1,) before the first batch."""
        import torch

        return torch.full((1,), float(self.start == "one"), device=context.device)

    def differences(self, features: Pairs, pretrained: Pairs) -> tuple[torch.Tensor, torch.Tensor]:
        """(u (n, 1), v (n, 1))."""
        images = (features.images * pretrained.images).sum(1, keepdim=True)
        return images, (features.texts * pretrained.texts).sum(1, keepdim=True)
