"""DiVE's comparison: the cosines of images and texts to their pretrained selves may change, but all alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from riftcli.methods.regularizers.pair_penalty import check_settings
from riftcli.protocols import Pairs, RegularizerContext

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Cosine:
    """As dive, with u = f(x) . f_0(x) and v = g(t) . g_0(t) in place of difference vectors (DiVE Eq. 10 and 11, Tab. 7).

    start: of the running mean, which the paper does not state: one (where every cosine starts) | zero (as that of dive, and the
      first steps then pull every cosine towards 0). strength, alpha, average, pairwise, mean_gradient, on: as of dive.
    """

    strength: float = 1000.0
    alpha: float = 0.99
    average: bool = True
    pairwise: bool = True
    mean_gradient: bool = False
    start: Literal["one", "zero"] = "one"
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

        return EqualDifferences(self, torch.full((1,), float(self.start == "one"), device=context.device))

    def differences(self, features: Pairs, pretrained: Pairs) -> tuple[torch.Tensor, torch.Tensor]:
        """(u (n, 1), v (n, 1))."""
        images = (features.images * pretrained.images).sum(1, keepdim=True)
        return images, (features.texts * pretrained.texts).sum(1, keepdim=True)
