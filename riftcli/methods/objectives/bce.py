"""Sigmoid binary cross-entropy for any number of labels per image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from riftcli.functional.precision import at_least_fp32
from riftcli.methods.objectives.class_weights import ClassWeights, OnDevices, check_weights, effective_number, listed
from riftcli.protocols import UNKNOWN, Task

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class BinaryCrossEntropy:
    """Sigmoid binary cross-entropy of the labels that are known (data.uncertain: ignore leaves some out).

    reduction: sum_classes (sum over classes, mean over samples: what the papers' code base does, and what a strength of 1
    was tuned against) | mean (over classes too; the regularizer is then C times stronger).
    class_weights: weight of the positives: none | balanced (negatives / positives on the training split) | effective (the same
    of effective numbers of samples with `beta`, Cui et al. 2019) | a list.
    """

    reduction: Literal["sum_classes", "mean"] = "sum_classes"
    class_weights: ClassWeights = "none"
    beta: float = 0.999
    task: ClassVar[Task] = "multilabel"

    def __post_init__(self) -> None:
        check_weights(self.class_weights, self.beta)

    def build(self, targets: torch.Tensor, num_classes: int) -> _BinaryCrossEntropy:
        """Count the training targets (N, C) and fix the weights."""
        import torch

        weight = None
        if self.class_weights in ("balanced", "effective"):
            positives, negatives = (targets == 1).float().sum(0), (targets == 0).float().sum(0)
            worth = negatives / positives.clamp_min(1)
            if self.class_weights == "effective":
                worth = effective_number(negatives, self.beta) / effective_number(positives, self.beta).clamp_min(1e-12)
            weight = torch.where((positives > 0) & (negatives > 0), worth, torch.ones_like(worth))
        elif isinstance(self.class_weights, list):
            weight = listed(self.class_weights, num_classes)
        return _BinaryCrossEntropy(weight, self.reduction)


class _BinaryCrossEntropy:
    def __init__(self, weight: torch.Tensor | None, reduction: str) -> None:
        self.class_weights, self.reduction = weight, reduction
        self._weight = OnDevices(weight)

    def losses(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        import torch
        import torch.nn.functional as F

        logits = at_least_fp32(logits)
        weight = None if self.class_weights is None else self._weight.on(logits.device).to(logits.dtype)
        known = targets != UNKNOWN
        truth = torch.where(known, targets, 0).float()
        each = F.binary_cross_entropy_with_logits(logits.float(), truth, reduction="none", pos_weight=weight)  # (n, C)
        each = torch.where(known, each, 0.0)
        return each.sum(1) if self.reduction == "sum_classes" else each.sum(1) / known.sum(1).clamp_min(1)

    def weights(self, targets: torch.Tensor) -> torch.Tensor:
        import torch

        return torch.ones(targets.shape[0], device=targets.device)
