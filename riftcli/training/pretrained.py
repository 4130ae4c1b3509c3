"""The pretrained model as features: of the evaluated splits, of the training split, and of single batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from riftcli.data.split import Split
from riftcli.data.transforms import Preprocessing
from riftcli.models.backbone import Backbone
from riftcli.models.classifier import Classifier, frozen_copy
from riftcli.recipe import Recipe

Encode = Callable[[nn.Module, Split, str], torch.Tensor]  # (Classifier, split, what it is for messages) -> (N, D)


class Pretrained:
    """What is kept of the model before training.

    splits: name -> (N, D), filled by `encode_splits`; trace_0: variance of the training features, summed over dimensions,
    where they were computed before training.
    """

    def __init__(self, train: Split, vit: Any, encode: Encode) -> None:
        self.splits: dict[str, torch.Tensor] = {}
        self.trace_0: float | None = None
        self._train, self._encode = train, encode
        self._model = Classifier(vit, frozen_backbone=True)
        self._train_features: torch.Tensor | None = None

    def encode_splits(self, splits: dict[str, Split], recipe: Recipe, device: torch.device) -> None:
        """Features of the splits that metrics compare on. From scratch, the pretrained weights are loaded just for this."""
        model = self._model
        if not recipe.model.pretrained:
            model = Classifier(Backbone(**{**recipe.model.model_dump(), "pretrained": True}).build().to(device))
        for name, split in splits.items():
            self.splits[name] = self._encode(model, split, f"{name} with the pretrained model")

    def train_features(self) -> torch.Tensor:
        """(N, D) of the training split before any training: computed once, for whoever asks first."""
        if self._train_features is None:
            self._train_features = self._encode(self._model, self._train, "train")
        return self._train_features

    def note_trace(self) -> None:
        """Remember the variance of the training features, if anything has asked for them: collapse is measured against it."""
        if self._train_features is not None:
            self.trace_0 = float(self._train_features.var(0).sum())


def batch_features(
    same_pixels: bool,
    vit: nn.Module,
    preprocessing: Preprocessing,
    device: torch.device,
    train_features: Callable[[], torch.Tensor],
) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """(positions, images) -> pretrained features (n_local, D): looked up when every epoch shows the same pixels, else a
    second, frozen forward.
    """
    if same_pixels:
        table = train_features()
        return lambda index, images: table[index].to(device)
    teacher = Classifier(frozen_copy(vit))

    def forward(index: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            return teacher(preprocessing.normalise(images)).features

    return forward
