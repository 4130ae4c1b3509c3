"""The seams of the house: what a dataset, an objective, an adapter, a regularizer and a metric must offer.

No base classes: anything with these methods fits. Tensors are named by shape: N samples of a split, n samples of the
global batch, D features, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    import torch
    from PIL import Image

Task = Literal["multiclass", "multilabel", "captions"]


class Output(NamedTuple):
    """What one forward pass returns."""

    features: torch.Tensor  # (n, D), the last vector before the head
    logits: torch.Tensor  # (n, C)


@dataclass(frozen=True)
class SplitSpec:
    """One split as a recipe asks for it: a split of the source, or a part cut from another one.

    name: split of the data source, e.g. `train`, or several joined by `+`; limit: keep that many samples, drawn with
    `seed`, classes in proportion; fraction: hold that share out of `name` (validation only), or folds and fold: the
    fold-th of so many parts (from 0); `group` keeps e.g. a patient whole.
    """

    name: str
    limit: int | None = None
    fraction: float | None = None
    folds: int | None = None
    fold: int = 0
    group: str | None = None
    seed: int = 0

    @property
    def held_out(self) -> bool:
        """True when this split is cut from the training split."""
        return self.fraction is not None or self.folds is not None


@dataclass(frozen=True)
class SplitRules:
    """What may hold between the splits of one recipe beyond the strict default.

    allow_overlap: samples in two splits are counted in the report instead of refused; allow_missing_classes: a split
    that is not trained on may lack classes.
    """

    allow_overlap: bool = False
    allow_missing_classes: bool = False


@dataclass(frozen=True)
class Split:
    """The samples of one split, not decoded: ids, targets, and how to read image i.

    paths: the file of each sample, where there is one; groups: column -> value of each sample (patient, slide, lesion);
    missing_groups: column that this source could have -> what is needed for it; captions: the texts of each sample;
    left_out: listed samples without an image, where the source was told to go on without them.
    """

    name: str
    ids: list[str]
    targets: np.ndarray  # (N,) int64 class index, or (N, C) uint8 of 0/1 for multi-label
    classes: list[str]
    read: Callable[[int], Image.Image]
    task: Task = "multiclass"
    groups: dict[str, list[str]] = field(default_factory=dict)
    paths: list[Path] | None = None
    missing_groups: dict[str, str] = field(default_factory=dict)
    captions: list[list[str]] | None = None
    left_out: int = 0

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, indices: Iterable[int], name: str | None = None) -> Split:
        """The samples at `indices`, in that order."""
        chosen = [int(i) for i in indices]
        return replace(
            self,
            name=name or self.name,
            ids=[self.ids[i] for i in chosen],
            targets=self.targets[chosen],
            read=_Indexed(self.read, chosen),
            groups={key: [values[i] for i in chosen] for key, values in self.groups.items()},
            paths=None if self.paths is None else [self.paths[i] for i in chosen],
            captions=None if self.captions is None else [self.captions[i] for i in chosen],
        )


class _Indexed:
    """`read` through a list of indices; a class rather than a closure so that data workers can pickle it."""

    def __init__(self, read: Callable[[int], Image.Image], indices: list[int]) -> None:
        self.read, self.indices = read, indices

    def __call__(self, i: int) -> Image.Image:
        return self.read(self.indices[i])


class Dataset(Protocol):
    """A data source. Its fields are the YAML keys below `data:`."""

    def load(self, split: str) -> Split:
        """List the samples of one split; raise DataError naming file, line and remedy."""


class Objective(Protocol):
    """A task loss, additive over samples: the loop divides by the total weight of the whole global batch."""

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


class Adapter(Protocol):
    """What trains: surgery and freezing on a built timm ViT, from outside."""

    trains_backbone: bool
    saved: Literal["plain", "merged", "unmerged"]  # plain: nothing is inserted; merged: it can be folded back; or it cannot
    no_weight_decay: tuple[str, ...]  # patterns of parameter names

    def prepare(self, vit: torch.nn.Module) -> None:
        """Set requires_grad (and insert modules) in place, before DDP wraps the model."""


@dataclass(frozen=True)
class PenaltyContext:
    """What a regularizer may ask for while it is set up."""

    feature_dim: int
    device: torch.device
    reference_features: Callable[[], torch.Tensor]  # -> (N, D) of the training split, pretrained model, eval transform


class Regularizer(Protocol):
    """What is added to the loss. `build` returns None when there is nothing to add (strength 0)."""

    def build(self, context: PenaltyContext) -> Penalty | None:
        """Bind to the pretrained model's statistics."""


class Penalty(Protocol):
    """A bound regularizer. It sees the features of the whole global batch, so it may be non-linear in the batch."""

    needs_reference: bool  # True: `reference` is the frozen pretrained model's features of the same samples
    on_weights: bool  # True: it is a function of the weights; it then has attach(vit) and pull() instead of a loss

    def loss(self, features: torch.Tensor, reference: torch.Tensor | None) -> torch.Tensor:
        """The term to add, strength included; (n, D), (n, D) -> ()."""

    def attach(self, vit: torch.nn.Module) -> None:
        """Of a term on the weights: bind to those that train, after surgery."""

    def pull(self) -> torch.Tensor:
        """Of a term on the weights: add its gradient to theirs and return its value ()."""

    def diagnostics(self, features: torch.Tensor, reference: torch.Tensor | None) -> dict[str, float]:
        """Named numbers for the log; never part of the graph."""

    def parameters(self) -> list[torch.nn.Parameter]:
        """Parameters that train beside the network and never ship with it (Q)."""

    lr_scale: float  # learning rate of `parameters()` relative to optim.lr

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Everything that resume needs."""

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Inverse of state_dict."""


@dataclass(frozen=True)
class Predictions:
    """A split as the model sees it, rows in the order of the split; what every metric is computed from."""

    logits: torch.Tensor  # (N, C) fp32
    targets: torch.Tensor  # (N,) int64 or (N, C) uint8
    features: torch.Tensor  # (N, D) fp32
    classes: list[str]
    task: Task
    reference: torch.Tensor | None = None  # (N, D) fp32 features of the pretrained model


class Metric(Protocol):
    """A number a report can hold."""

    higher_is_better: bool
    needs_reference: bool

    def compute(self, predictions: Predictions) -> dict[str, Any]:
        """At least {"value": float | None}; None comes with a "reason"."""
