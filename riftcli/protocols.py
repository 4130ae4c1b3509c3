"""Interfaces: what an objective, an adapter, a regularizer and a metric must offer.

No base classes: anything with these methods fits. Tensors are named by shape: N samples of a split, n samples of the
global batch, D features, C classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, runtime_checkable

if TYPE_CHECKING:
    import torch

Task = Literal["multiclass", "multilabel", "captions"]
UNKNOWN = 255  # in targets of several labels: neither 0 nor 1; no loss is computed of it and no metric counts it


class Output(NamedTuple):
    """What one forward pass returns."""

    features: torch.Tensor  # (n, D), the last vector before the head
    logits: torch.Tensor  # (n, C)
    layers: torch.Tensor | None = None  # (n, L * D), features of several depths side by side, where they are asked for
    texts: torch.Tensor | None = None  # (t, E) unit-length embeddings of the texts that came along
    scale: torch.Tensor | None = None  # () what similarities of images and texts are multiplied by


class Pairs(NamedTuple):
    """Images and the text of each, embedded at unit length; what contrastive terms look at."""

    images: torch.Tensor  # (n, E)
    texts: torch.Tensor  # (n, E)
    scale: torch.Tensor  # () exp(logit_scale)


class Objective(Protocol):
    """A task loss, additive over samples: the loop divides by the total weight of the whole global batch.

    One that reads texts says which, as `texts`: "sample" (one of each sample's class) or "class" (one of every class, and the
    logits are the similarities to them).
    """

    task: Task

    def build(self, targets: torch.Tensor, num_classes: int) -> ObjectiveFn:
        """Bind to the training targets (class weights are counted there)."""


class ObjectiveFn(Protocol):
    """A bound objective. Both methods return (n,) fp32."""

    class_weights: torch.Tensor | None  # (C,), for the report

    def losses(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Weighted loss of each sample; (n, C), (n,) or (n, C) -> (n,)."""

    def weights(self, targets: torch.Tensor) -> torch.Tensor:
        """Weight of each sample in the mean; (n,)."""


class PairObjectiveFn(Protocol):
    """A bound objective of images and their texts that is not additive: every pair meets every other of the global batch."""

    class_weights: torch.Tensor | None

    def pair_loss(self, pairs: Pairs, targets: torch.Tensor) -> torch.Tensor:
        """The loss of the whole batch; targets (n,) are the classes; -> ()."""

    def weights(self, targets: torch.Tensor) -> torch.Tensor:
        """(n,) ones."""


class Adapter(Protocol):
    """What trains: surgery and freezing on a built timm ViT, from outside."""

    trains_backbone: bool
    saved: Literal["plain", "merged", "unmerged"]  # plain: nothing is inserted; merged: it can be folded back; or it cannot
    no_weight_decay: tuple[str, ...]  # patterns of parameter names

    def prepare(self, vit: torch.nn.Module) -> None:
        """Set requires_grad (and insert modules) in place, before DDP wraps the model."""


@dataclass(frozen=True)
class RegularizerContext:
    """What a regularizer may ask for while it is set up."""

    feature_dim: int
    device: torch.device
    pretrained_features: Callable[[], torch.Tensor]  # -> (N, D) of the images it looks at, pretrained model, eval transform


class Regularizer(Protocol):
    """What is added to the loss. `build` returns None when there is nothing to add (strength 0).

    Fields with a meaning of their own, where a regularizer has them: `strength` (a rule may steer it), `on` (task: it looks at
    the task's batches; reference: at those of the recipe's `reference`), `layers` (it compares so many depths, not the last
    features alone), `of_whole_images` (it compares with what was measured of images as they are, so that mixed ones do not go
    with it), `texts` = "sample" (it looks at images and their texts: its penalty is a PairPenalty).
    """

    def build(self, context: RegularizerContext) -> FeaturePenalty | WeightPenalty | None:
        """Bind to the pretrained model's statistics."""


class FeaturePenalty(Protocol):
    """A bound regularizer of features. It sees those of the whole global batch, so it may be non-linear in the batch.

    Optional: `strength`, the weight that `loss` applies, may be changed between steps; `additive` = True says that `loss` is a
    mean over samples, so that micro-batches need one pass; `observe(features, pretrained)` is called once a step, after the
    loss, with the global batch (n, D) outside the graph: for running averages.
    """

    needs_pretrained: bool  # True: `pretrained` is the frozen pretrained model's features of the same samples
    lr_scale: float  # learning rate of `parameters()` relative to optim.lr

    def loss(self, features: torch.Tensor, pretrained: torch.Tensor | None) -> torch.Tensor:
        """The term to add, strength included; (n, D), (n, D) -> ()."""

    def diagnostics(self, features: torch.Tensor, pretrained: torch.Tensor | None) -> dict[str, float]:
        """Named numbers for the log; never part of the graph."""

    def parameters(self) -> list[torch.nn.Parameter]:
        """Parameters that train beside the network and never ship with it (Q)."""

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Everything that resume needs."""

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Inverse of state_dict."""


class PairPenalty(Protocol):
    """A FeaturePenalty whose `features` and `pretrained` are Pairs. pairs = True says so; the rest is the same."""

    pairs: bool
    needs_pretrained: bool
    lr_scale: float

    def loss(self, features: Pairs, pretrained: Pairs | None) -> torch.Tensor:
        """The term to add, strength included; -> ()."""

    def diagnostics(self, features: Pairs, pretrained: Pairs | None) -> dict[str, float]:
        """Named numbers for the log."""

    def parameters(self) -> list[torch.nn.Parameter]:
        """Parameters that train beside the network."""

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Everything that resume needs."""

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Inverse of state_dict."""


@runtime_checkable
class WeightPenalty(Protocol):
    """A bound regularizer of weights. It does not depend on the batch, so its gradient is added after backward."""

    def attach(self, vit: torch.nn.Module) -> None:
        """Bind to the weights that train, after surgery and before the first step."""

    def add_gradient(self) -> torch.Tensor:
        """Add the term's gradient to the weights' and return its value ()."""

    def diagnostics(self) -> dict[str, float]:
        """Named numbers for the log."""

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Everything that resume needs."""

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Inverse of state_dict."""


class StrengthRule(Protocol):
    """Chooses the strength of a regularizer while training. A recipe names it by its first field: `strength: {keep: 0.9}`."""

    wants: Literal["gradients", "similarity"]  # what it is told: see StrengthControl.update

    def begin(self, total_steps: int) -> StrengthControl:
        """The rule at work in a run of so many steps."""


class StrengthControl(Protocol):
    """A rule at work. Every rank holds the same."""

    strength: float  # what applies to the next step

    def due(self, step: int) -> bool:
        """True when it wants a measurement after `step` (counted from 1)."""

    def update(self, progress: float, rate: float, measured: tuple[float, ...]) -> dict[str, float]:
        """Choose the next strength; returns what to log.

        progress: share of the learning rate, summed over steps, that is spent; rate: its present value relative to the peak.
        measured: (norm of the task's gradient for the features, norm of the term's at its present strength) or (debiased CKA to
        the pretrained model on validation images,).
        """

    def outcome(self, similarity: float | None) -> dict[str, Any]:
        """For the report, at the end: what was wanted and what came of it; `note` is a line for the user, or None."""

    def state_dict(self) -> dict[str, Any]:
        """Plain values: all that resume needs."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of state_dict."""


@dataclass(frozen=True)
class Predictions:
    """A split as the model sees it, rows in the order of the split; what every metric is computed from."""

    logits: torch.Tensor  # (N, C) fp32
    targets: torch.Tensor  # (N,) int64 or (N, C) uint8 of 0, 1 and UNKNOWN
    features: torch.Tensor  # (N, D) fp32
    classes: list[str]
    task: Task
    pretrained: torch.Tensor | None = None  # (N, D) fp32 features of the pretrained model
    groups: list[str] | None = None  # of each sample, where a recipe names a column as eval.group
    device: torch.device | None = None  # where two models are compared; None: where the features are
    shared: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)  # what several metrics compute from it


class Metric(Protocol):
    """A number a report can hold."""

    higher_is_better: bool
    needs_pretrained: bool

    def compute(self, predictions: Predictions) -> dict[str, Any]:
        """At least {"value": float | None}; None comes with a "reason"."""
