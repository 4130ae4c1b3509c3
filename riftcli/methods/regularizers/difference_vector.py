"""Difference vectors: every feature may move, but all by the same vector."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from riftcli.protocols import RegularizerContext

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class DifferenceVector:
    """strength * mean of ||u_j - m||^2, u_j = f(x_j) - f_0(x_j), m a running mean of u: DiVE's average vector loss, on images.

    Equal difference vectors translate the whole representation, so its geometry is kept and CKA is 1.

    strength: weight of the term; 0 is exactly plain finetuning. The paper's 1000 (of 100 to 5000) goes with unit-length
      features of a CLIP model, whose differences are about 1e-3; with distance relative, 1 is where to start.
    distance: unit (features scaled to length 1 first, as published) | relative (plain features, divided by the mean
      ||f_0 - mean||^2 of the batch) | raw.
    decay: of the running mean, which starts at zero and is not corrected for that, as published; it includes the batch at hand
      and takes no gradient.
    on: task (the task's batches) | reference (the images of the recipe's `reference`, as published).
    """

    strength: float = 1000.0
    distance: Literal["unit", "relative", "raw"] = "unit"
    decay: float = 0.99
    on: Literal["task", "reference"] = "task"

    def __post_init__(self) -> None:
        if self.strength < 0:
            raise ValueError("strength: must be 0 or more")
        if not 0 <= self.decay < 1:
            raise ValueError("decay: must be 0 or more and below 1")

    def build(self, context: RegularizerContext) -> Any:
        """None when strength is 0."""
        if self.strength == 0:
            return None
        import torch

        from riftcli.methods.regularizers.difference_penalty import DifferencePenalty

        return DifferencePenalty(self, torch.zeros(context.feature_dim, device=context.device))

    def differences(self, features: torch.Tensor, pretrained: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | float]:
        """(u (n, D), what squared distances are divided by)."""
        import torch.nn.functional as F

        if self.distance == "unit":
            return F.normalize(features) - F.normalize(pretrained), 1.0
        if self.distance == "raw":
            return features - pretrained, 1.0
        spread = (pretrained - pretrained.mean(0)).square().sum(1).mean()
        return features - pretrained, spread.clamp_min(1e-12)
