"""The bound softmax cross-entropy, whatever its logits are made of."""

from __future__ import annotations

from typing import TYPE_CHECKING

from riftcli.functional.precision import at_least_fp32
from riftcli.methods.objectives.class_weights import ClassWeights, OnDevices, resolve

if TYPE_CHECKING:
    import torch


class SoftmaxLoss:
    """class_weights: (C,) or None; smoothing: share of the target spread over all classes."""

    def __init__(self, weight: torch.Tensor | None, smoothing: float) -> None:
        self.class_weights, self.smoothing = weight, smoothing
        self._weight = OnDevices(weight)

    @classmethod
    def counted(
        cls, targets: torch.Tensor, num_classes: int, weights: ClassWeights, beta: float, smoothing: float
    ) -> SoftmaxLoss:
        """With class weights from the training targets (N,)."""
        counts = targets.bincount(minlength=num_classes).float()
        return cls(resolve(weights, counts, beta), smoothing)

    def losses(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Weighted loss of each sample; (n, C), (n,) -> (n,)."""
        import torch.nn.functional as F

        wide = at_least_fp32(logits)
        weight = None if self.class_weights is None else self._weight.on(wide.device).to(wide.dtype)
        return F.cross_entropy(wide, targets, weight, reduction="none", label_smoothing=self.smoothing)

    def weights(self, targets: torch.Tensor) -> torch.Tensor:
        """Weight of each sample in the mean; (n,)."""
        import torch

        if self.class_weights is None:
            return torch.ones(targets.shape[0], device=targets.device)
        return self._weight.on(targets.device)[targets]
