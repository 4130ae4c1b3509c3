"""Gram matching: the angles between the samples of a batch stay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from riftcli.protocols import RegularizerContext

if TYPE_CHECKING:
    import torch

    from riftcli.methods.regularizers.paired_penalty import PairedPenalty


@dataclass(frozen=True)
class CosineGram:
    """strength * mean over pairs of (cos(f_i, f_j) - cos(f0_i, f0_j))^2: relational distillation, CyCLIP's image-only form.

    strength: weight of the term; 0 is exactly plain finetuning.
    on: task (the task's batches) | reference (the images of the recipe's `reference`).
    """

    strength: float = 1.0
    on: Literal["task", "reference"] = "task"

    def __post_init__(self) -> None:
        if self.strength < 0:
            raise ValueError("strength: must be 0 or more")

    def build(self, context: RegularizerContext) -> PairedPenalty | None:
        """None when strength is 0."""
        from riftcli.methods.regularizers.paired_penalty import PairedPenalty

        return None if self.strength == 0 else PairedPenalty(self.strength, gram_difference)


def gram_difference(features: torch.Tensor, pretrained: torch.Tensor) -> torch.Tensor:
    """Mean squared difference of the cosine matrices; (n, D), (n, D) -> ()."""
    import torch.nn.functional as F

    after, before = F.normalize(features), F.normalize(pretrained)
    return (after @ after.T - before @ before.T).square().mean()
