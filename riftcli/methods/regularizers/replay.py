"""Replay: pairs of a reference set are trained on beside the task."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from riftcli.protocols import Pairs, RegularizerContext

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Replay:
    """strength * the contrastive loss of image-caption pairs (DiVE Eq. 15, "FLYP + replay"; a stand-in for ARF, Han et al. 2024).

    strength: weight of the term; 0 is exactly plain finetuning, 1 is the published one.
    on: reference (pairs of the recipe's `reference`); there is no other choice.
    """

    strength: float = 1.0
    on: Literal["reference"] = "reference"
    texts: ClassVar[str] = "sample"
    trains_scale: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.strength < 0:
            raise ValueError("strength: must be 0 or more")

    def build(self, context: RegularizerContext) -> Any:
        """None when strength is 0."""
        from riftcli.methods.regularizers.pair_penalty import PairTerm

        return None if self.strength == 0 else PairTerm(self.strength, contrast, needs_pretrained=False)


def contrast(pairs: Pairs, pretrained: Pairs | None) -> torch.Tensor:
    """The contrastive loss of the batch; -> ()."""
    from riftcli.functional.contrastive import contrastive_loss

    return contrastive_loss(*pairs)
