"""Softmax cross-entropy for one label per image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from riftcli.methods.objectives.class_weights import ClassWeights, check_weights
from riftcli.methods.objectives.softmax import SoftmaxLoss
from riftcli.protocols import Task

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class CrossEntropy:
    """Softmax cross-entropy, the mean over the global batch weighted by class weight.

    class_weights: none | balanced (N / (C * count) on the training split) | effective (inverse effective number of samples
    with `beta`, Cui et al. 2019) | a list, one per class.
    label_smoothing: share of the target spread over all classes, in [0, 1).
    """

    class_weights: ClassWeights = "none"
    label_smoothing: float = 0.0
    beta: float = 0.999
    task: ClassVar[Task] = "multiclass"

    def __post_init__(self) -> None:
        check_weights(self.class_weights, self.beta)
        if not 0 <= self.label_smoothing < 1:
            raise ValueError("label_smoothing: must be in [0, 1)")

    def build(self, targets: torch.Tensor, num_classes: int) -> SoftmaxLoss:
        """Count the training targets (N,) and fix the weights."""
        return SoftmaxLoss.counted(targets, num_classes, self.class_weights, self.beta, self.label_smoothing)
