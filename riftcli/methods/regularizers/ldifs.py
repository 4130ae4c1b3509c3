"""LDIFS: the features of several depths stay near their pretrained values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from riftcli.protocols import RegularizerContext

if TYPE_CHECKING:
    import torch

    from riftcli.methods.regularizers.paired_penalty import PairedPenalty


@dataclass(frozen=True)
class Ldifs:
    """strength * mean over samples and depths of ||g_l(x) - g_0l(x)||^2, g unit-length features after several blocks (Mukhoti
    et al. 2023).

    strength: weight of the term; 0 is exactly plain finetuning. 10 is the published one; the published code also divides by the
      number of features, the published formula does not, and neither do we.
    layers: how many equally spaced depths; the last of them is the feature before the head, and 1 leaves nothing but that. A
      block's feature is what the head would read there: the class token, or the mean over the image.
    on: task (the task's batches) | reference (the images of the recipe's `reference`).
    """

    strength: float = 10.0
    layers: int = 5
    on: Literal["task", "reference"] = "task"

    def __post_init__(self) -> None:
        if self.strength < 0:
            raise ValueError("strength: must be 0 or more")
        if self.layers < 1:
            raise ValueError("layers: must be 1 or more")

    def build(self, context: RegularizerContext) -> PairedPenalty | None:
        """None when strength is 0."""
        if self.strength == 0:
            return None
        from riftcli.methods.regularizers.paired_penalty import PairedPenalty

        dim = context.feature_dim

        def distance(features: torch.Tensor, pretrained: torch.Tensor) -> torch.Tensor:
            """(n, L * D), (n, L * D) -> ()."""
            import torch.nn.functional as F

            after = F.normalize(features.unflatten(1, (-1, dim)), dim=2)
            before = F.normalize(pretrained.unflatten(1, (-1, dim)), dim=2)
            return (after - before).square().sum(2).mean()

        return PairedPenalty(self.strength, distance, dim=dim)
