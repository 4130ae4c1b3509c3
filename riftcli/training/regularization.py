"""The regularizer of a run, bound to the pretrained model while the weights are still its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from riftcli.console import Console
from riftcli.data.transforms import Preprocessing
from riftcli.models.classifier import Classifier
from riftcli.protocols import FeaturePenalty, PairPenalty, Pairs, RegularizerContext, WeightPenalty
from riftcli.recipe import Recipe
from riftcli.training.network import Network
from riftcli.training.pretrained import Pretrained, embedded
from riftcli.training.step import OfBatch
from riftcli.training.texts import Texts


@dataclass(frozen=True)
class Regularization:
    """on_features or on_weights: what is added to the loss, of one kind or the other; None where nothing is.

    of_batch: what a penalty of features compares a batch with, where it needs that; stream: the batches it looks at.
    """

    on_features: FeaturePenalty | PairPenalty | None = None
    on_weights: WeightPenalty | None = None
    of_batch: OfBatch | None = None
    stream: str = "task"

    @property
    def pairs(self) -> bool:
        """True when it looks at texts too."""
        return getattr(self.on_features, "pairs", False)


def bind_regularizer(
    recipe: Recipe,
    network: Network,
    pretrained: Pretrained,
    texts: dict[str, Texts],
    device: torch.device,
    bf16: bool,
    encode_texts: Callable[[Any, Texts], torch.Tensor],
    console: Console,
) -> Regularization:
    """Before surgery, while the weights are the pretrained ones."""
    if not recipe.adapter.trains_backbone:
        if recipe.component_name("regularizer") != "none":
            console.warn("the regularizer has no effect: this adapter freezes the backbone, so its features cannot move")
        return Regularization()
    stream, dim = getattr(recipe.regularizer, "on", "task"), network.vit.num_features
    penalty = recipe.regularizer.build(RegularizerContext(dim, device, lambda: pretrained.features(stream)))
    if penalty is None:  # strength 0 is plain finetuning, of the last features too
        network.classifier.depths = 0
        return Regularization()
    if isinstance(penalty, WeightPenalty):
        return Regularization(on_weights=penalty)
    if getattr(recipe.adapter, "towers", None) == "text" and not getattr(penalty, "pairs", False):
        console.warn("the regularizer has no effect: adapter.towers text freezes the image tower, so its features cannot move")
        network.classifier.depths = 0
        return Regularization()
    of_batch: OfBatch | None = None
    if hasattr(penalty, "teacher"):
        of_batch = _of_teacher(penalty, network.preprocessing, bf16)
    elif penalty.needs_pretrained and getattr(penalty, "pairs", False):
        own = texts[stream]
        of_batch = pretrained.of_pairs(recipe, stream, own, network.preprocessing, device, bf16, encode_texts)
    elif penalty.needs_pretrained:
        of_batch = pretrained.of_batches(recipe, stream, network.classifier.depths, network.preprocessing, device, bf16)
    return Regularization(penalty, None, of_batch, stream)


def _of_teacher(penalty: Any, preprocessing: Preprocessing, bf16: bool) -> OfBatch:
    """A penalty that brings a network of its own: the batch through that."""

    def forward(index: torch.Tensor, images: torch.Tensor, tokens: torch.Tensor) -> Pairs:
        return embedded(Classifier(penalty.teacher).eval(), preprocessing.normalise(images), tokens, bf16)

    return forward
