"""Select-and-distill with one teacher: image embeddings of a reference set stay where they were."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from riftcli.protocols import RegularizerContext

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Snd:
    """strength * mean ||f(x) - f_0(x)||^2 of unit-length image embeddings (DiVE Eq. 12, after Yu et al. 2024, SnD).

    The published SnD has a second teacher, the model of the task before: with one task there is none, and this is DiVE's form.

    strength: weight of the term; 0 is exactly plain finetuning, 1 is DiVE's (the weight of this teacher in SnD's code is 0.5).
    on: reference (images of the recipe's `reference`, as published) | task (the task's batches).
    """

    strength: float = 1.0
    on: Literal["reference", "task"] = "reference"

    def __post_init__(self) -> None:
        if self.strength < 0:
            raise ValueError("strength: must be 0 or more")

    def build(self, context: RegularizerContext) -> Any:
        """None when strength is 0."""
        if self.strength == 0:
            return None
        from riftcli.methods.regularizers.paired_penalty import PairedPenalty

        penalty: Any = PairedPenalty(self.strength, drift)
        penalty.additive = True  # a mean over samples: micro-batches need one pass
        return penalty


def drift(features: torch.Tensor, pretrained: torch.Tensor) -> torch.Tensor:
    """Mean squared distance at unit length; (n, D), (n, D) -> ()."""
    import torch.nn.functional as F

    return (F.normalize(features) - F.normalize(pretrained)).square().sum(1).mean()
