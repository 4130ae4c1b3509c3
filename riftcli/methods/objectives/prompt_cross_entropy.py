"""Cross-entropy over the texts of all classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from riftcli.methods.objectives.class_weights import ClassWeights, check_weights
from riftcli.methods.objectives.softmax import SoftmaxLoss
from riftcli.protocols import Task

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class PromptCrossEntropy:
    """Softmax cross-entropy over exp(logit_scale) * image . text of each class, one template drawn per class and step (FLYP's
    ablation with cross-entropy). Both towers train, as `adapter.towers` says.

    class_weights, label_smoothing, beta: as of cross_entropy. clamp_scale: as of contrastive.
    """

    class_weights: ClassWeights = "none"
    label_smoothing: float = 0.0
    beta: float = 0.999
    clamp_scale: bool = True
    task: ClassVar[Task] = "multiclass"
    texts: ClassVar[str] = "class"
    trains_scale: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_weights(self.class_weights, self.beta)
        if not 0 <= self.label_smoothing < 1:
            raise ValueError("label_smoothing: must be in [0, 1)")

    def build(self, targets: torch.Tensor, num_classes: int) -> SoftmaxLoss:
        """Count the training targets (N,) and fix the weights."""
        return SoftmaxLoss.counted(targets, num_classes, self.class_weights, self.beta, self.label_smoothing)
