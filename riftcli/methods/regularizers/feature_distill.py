"""Feature distillation: every feature stays near its pretrained value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from riftcli.protocols import RegularizerContext

if TYPE_CHECKING:
    import torch

    from riftcli.methods.regularizers.paired_penalty import PairedPenalty


@dataclass(frozen=True)
class FeatureDistill:
    """strength * mean of ||f(x) - f_0(x)||^2 over the batch (learning without forgetting, on features; SnD on the task's images).

    strength: weight of the term; 0 is exactly plain finetuning.
    distance: relative (divided by the mean ||f_0 - mean||^2 of the batch, so that a collapse costs about `strength`) | raw
    (the plain squared distance) | unit (of features scaled to length 1) | cosine (1 - cosine).
    on: task (the task's batches) | reference (the images of the recipe's `reference`).
    """

    strength: float = 1.0
    distance: Literal["relative", "raw", "unit", "cosine"] = "relative"
    on: Literal["task", "reference"] = "task"

    def __post_init__(self) -> None:
        if self.strength < 0:
            raise ValueError("strength: must be 0 or more")

    def build(self, context: RegularizerContext) -> PairedPenalty | None:
        """None when strength is 0."""
        from riftcli.methods.regularizers.paired_penalty import PairedPenalty

        return None if self.strength == 0 else PairedPenalty(self.strength, self.drift)

    def drift(self, features: torch.Tensor, pretrained: torch.Tensor) -> torch.Tensor:
        """The mean distance; (n, D), (n, D) -> ()."""
        import torch.nn.functional as F

        if self.distance == "cosine":
            return 1 - F.cosine_similarity(features, pretrained).mean()
        if self.distance == "unit":
            features, pretrained = F.normalize(features), F.normalize(pretrained)
        drift = (features - pretrained).square().sum(1).mean()
        if self.distance == "relative":
            spread = (pretrained - pretrained.mean(0)).square().sum(1).mean()
            return drift / spread.clamp_min(1e-12)
        return drift
