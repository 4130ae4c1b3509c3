"""The pretrained model as features: of the evaluated splits, of the training images, and of single batches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import nn

from riftcli.data.split import Split
from riftcli.data.transforms import Preprocessing, TrainTransform
from riftcli.evaluation.features import View
from riftcli.functional.precision import at_least_fp32
from riftcli.models.backbone import Backbone
from riftcli.models.classifier import Classifier, Depths, frozen_copy
from riftcli.models.image_text import TextTower, text_tower
from riftcli.models.sharding import as_pretrained, is_sharded
from riftcli.protocols import Pairs
from riftcli.recipe import Recipe
from riftcli.training.compiling import compiled, compiles
from riftcli.training.texts import Texts


class Encode(Protocol):
    """A split through a model -> (N, D) on the CPU; `what` it is for messages; view: augmented as training does."""

    def __call__(self, model: nn.Module, split: Split, what: str, view: View | None = None) -> torch.Tensor:  # noqa: D102
        ...


class Pretrained:
    """What is kept of the model before training.

    splits: name -> (N, D), filled by `encode_splits`; trace_0: variance of the training features, summed over dimensions,
    where they were computed before training.
    """

    def __init__(self, train: Split, vit: Any, encode: Encode, reference: Split | None = None) -> None:
        self.splits: dict[str, torch.Tensor] = {}
        self.trace_0: float | None = None
        self._streams = {"task": train, "reference": reference}
        self._vit, self._encode = vit, encode
        self._model = Classifier(vit, frozen_backbone=True)
        self._tables: dict[str, torch.Tensor] = {}

    def encode_splits(self, splits: dict[str, Split], recipe: Recipe, device: torch.device) -> None:
        """Features of the splits that metrics compare on. From scratch, the pretrained weights are loaded just for this."""
        model = self._model
        if not recipe.model.pretrained:
            model = Classifier(Backbone(**{**recipe.model.model_dump(), "pretrained": True}).build().to(device))
        for name, split in splits.items():
            self.splits[name] = self._encode(model, split, f"{name} with the pretrained model")

    def features(self, stream: str = "task") -> torch.Tensor:
        """(N, D) of the images of a stream before any training, not augmented: computed once, for whoever asks first."""
        if stream not in self._tables:
            split = self._streams[stream]
            assert split is not None
            self._tables[stream] = self._encode(self._model, split, "train" if stream == "task" else stream)
        return self._tables[stream]

    def train_features(self) -> torch.Tensor:
        """(N, D) of the training split."""
        return self.features("task")

    def note_trace(self) -> None:
        """Remember the variance of the training features, if anything has asked for them: collapse is measured against it."""
        if "task" in self._tables:
            self.trace_0 = float(self._tables["task"].var(0).sum())

    def of_pairs(
        self,
        recipe: Recipe,
        stream: str,
        texts: Texts,
        preprocessing: Preprocessing,
        device: torch.device,
        bf16: bool,
        encode_texts: Callable[[TextTower, Texts], torch.Tensor],
    ) -> Callable[[torch.Tensor, torch.Tensor, torch.Tensor], Pairs]:
        """(positions and numbers of texts (n, 2), images, tokens) -> pretrained embeddings of what a step sees.

        Looked up where images repeat exactly, as `of_batches` does; the texts then too: every one is encoded once, by
        `encode_texts`.
        """
        tower = text_tower(self._vit)
        assert tower is not None
        scale = tower.scale.detach().clone()
        if _look_up(recipe, stream):
            images_of = self.of_batches(recipe, stream, 0, preprocessing, device, bf16)
            table = encode_texts(tower, texts).to(device)
            return lambda index, images, tokens: Pairs(images_of(index[:, 0], images), table[_sent(index[:, 1], device)], scale)
        teacher = Classifier(frozen_copy(self._vit))

        def forward(index: torch.Tensor, images: torch.Tensor, tokens: torch.Tensor) -> Pairs:
            return embedded(teacher, preprocessing.normalise(images), tokens, bf16)

        return forward

    def of_batches(
        self, recipe: Recipe, stream: str, depths: int, preprocessing: Preprocessing, device: torch.device, bf16: bool
    ) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
        """(positions, images) -> pretrained features (n_local, D) of what a step sees.

        Looked up where images repeat exactly: without augmentation, or with `augment.views`. Else, and for mixed images, a
        second, frozen forward, in the precision of the network that trains. depths: of so many depths side by side
        (n_local, L * D).
        """
        split, augment = self._streams[stream], recipe.augment
        assert split is not None
        model: nn.Module = Depths(self._vit, depths) if depths else self._model
        if _look_up(recipe, stream) and augment.off:
            table = self.features(stream) if not depths else self._encode(model, split, f"{stream} with the pretrained model")
            return lambda index, images: _sent(table[index], device)
        if _look_up(recipe, stream) and augment.views:
            settings, resize = augment.of_one_image, recipe.input.training_resize
            transform = TrainTransform(replace(preprocessing, resize=resize), **settings)
            settings = {**settings, "resize": resize}
            views = [View(transform, recipe.train.seed, number, settings) for number in range(augment.views)]
            names = [f"view {view.number + 1} of {augment.views}, with the pretrained model" for view in views]
            table = torch.cat([self._encode(model, split, name, view) for name, view in zip(names, views, strict=True)])
            return lambda index, images: _sent(table[index], device)
        if is_sharded(self._vit):
            return self._of_itself(model, preprocessing, device, bf16)
        copied = frozen_copy(self._vit)
        teacher: Any = Depths(copied, depths) if depths else Classifier(copied)
        if compiles(recipe.train.compile, device):
            teacher = compiled(teacher)

        def forward(index: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
            with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                return teacher(preprocessing.normalise(images)).features.float()

        return forward

    def _of_itself(
        self, model: nn.Module, preprocessing: Preprocessing, device: torch.device, bf16: bool
    ) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
        """What a frozen copy would give, of a network that is shared out: it is run without its updates."""

        def forward(index: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
            with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=bf16), as_pretrained(self._vit):
                return model(preprocessing.normalise(images)).features.float()

        return forward


def _look_up(recipe: Recipe, stream: str) -> bool:
    """True where the images of a stream repeat exactly."""
    augment = recipe.augment
    return (augment.off or bool(augment.views)) and not (stream == "task" and augment.mixed)


def embedded(model: Classifier, images: torch.Tensor, tokens: torch.Tensor, bf16: bool) -> Pairs:
    """Images and texts through a network that does not train here."""
    with torch.inference_mode(), torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
        output = model(images, tokens)
    assert output.texts is not None and output.scale is not None
    rows = (output.features, output.texts, output.scale)
    return Pairs(*map(at_least_fp32, rows))


def _sent(rows: torch.Tensor, device: torch.device) -> torch.Tensor:
    """To a device without waiting for it: from memory that it reads by itself."""
    return (rows.pin_memory() if device.type == "cuda" else rows).to(device, non_blocking=True)
