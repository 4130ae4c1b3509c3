"""The batches that a step sees: the task's, and those of a second stream beside them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from riftcli import dist
from riftcli.data.batches import balancing_weights, epoch_batches, sample_seed, steps_per_epoch
from riftcli.data.kept_images import KeptPart
from riftcli.data.loader import Batch, ImageDataset, ImageTextDataset, Item, TensorTable, Workers, train_loader
from riftcli.data.split import Split
from riftcli.data.transforms import EvalTransform, Preprocessing, TrainTransform
from riftcli.recipe import Recipe
from riftcli.training.texts import Texts


@dataclass(frozen=True)
class TrainBatches:
    """This rank's part of every batch of every epoch. dataset: makes a torch Dataset whose items are (input, target, i)."""

    dataset: Callable[[], Any]
    samples: int
    batch_size: int  # global
    seed: int
    workers: Workers
    sampling: torch.Tensor | None = None  # (N,) weights of the training samples, None to shuffle them
    section: str = "train"  # of the recipe, for messages

    @property
    def steps_per_epoch(self) -> int:
        """Whole global batches in an epoch; raise DataError for none."""
        return steps_per_epoch(self.samples, self.batch_size, self.section)

    def positions(self, epoch: int, first_step: int = 0) -> list[list[int]]:
        """Positions in the training split, one list per step."""
        rank, ranks = dist.rank(), dist.world_size()
        return epoch_batches(self.samples, self.batch_size, self.seed, epoch, rank, ranks, first_step, self.sampling)

    def load(self, first_step: int, epochs: int | None = None) -> Iterator[Batch]:
        """The batches from a step of the run on, epoch after epoch; without a number of epochs there is no last one."""
        return train_loader(self.dataset(), self._items(first_step, epochs), self.workers)

    def _items(self, first_step: int, epochs: int | None) -> Iterator[list[Item]]:
        epoch, first = divmod(first_step, self.steps_per_epoch)
        for number in itertools.count(epoch) if epochs is None else range(epoch, epochs):
            for batch in self.positions(number, first):
                yield [(number, i) for i in batch]
            first = 0


def count_batches(recipe: Recipe, samples: int, dataset: Any = None, sampling: torch.Tensor | None = None) -> TrainBatches:
    """Of the task; without a dataset, only to be counted."""
    train = recipe.train
    return TrainBatches(dataset, samples, train.batch_size, train.seed, train.workers, sampling)


def train_batches(
    recipe: Recipe,
    train: Split,
    preprocessing: Preprocessing,
    features: Callable[[], torch.Tensor] | None,
    texts: Texts | None = None,
    kept: KeptPart | None = None,
) -> TrainBatches:
    """Of the task. features: (N, D) that stand in for the images, where nothing below the head moves; texts: that come along;
    kept: for images that are the same in every epoch.
    """
    targets = torch.from_numpy(train.targets)
    sampling = balancing_weights(targets) if recipe.train.sampler == "balanced" else None

    def dataset() -> Any:
        if features is not None:
            return TensorTable(features(), targets)
        return _dataset(recipe, train, _transform(recipe, preprocessing), texts, kept)

    return count_batches(recipe, len(train), dataset, sampling)


def reference_batches(
    recipe: Recipe,
    split: Split,
    preprocessing: Preprocessing | None = None,
    texts: Texts | None = None,
    kept: KeptPart | None = None,
) -> TrainBatches:
    """Of the second stream: an order and augmentations of its own. Without preprocessing, only to be counted."""
    assert recipe.reference is not None
    seed = sample_seed(recipe.train.seed, 0, "reference")
    transform: Any = None if preprocessing is None else _transform(recipe, preprocessing)

    def dataset() -> Any:
        return _dataset(recipe, split, transform, texts, kept)

    size = recipe.reference.batch_size or recipe.train.batch_size
    return TrainBatches(dataset, len(split), size, seed, recipe.train.workers, section="reference")


def _dataset(recipe: Recipe, split: Split, transform: Any, texts: Texts | None, kept: KeptPart | None) -> ImageDataset:
    shown = kept if recipe.augment.off else None
    if texts is None:
        return ImageDataset(split, transform, recipe.train.seed, recipe.augment.views, shown)
    drawn = {"first": texts.first, "count": texts.count}
    return ImageTextDataset(split, transform, recipe.train.seed, recipe.augment.views, shown, **drawn)


def _transform(recipe: Recipe, preprocessing: Preprocessing) -> Any:
    augment = recipe.augment
    if augment.off:
        return EvalTransform(preprocessing)
    return TrainTransform(replace(preprocessing, resize=recipe.input.training_resize), **augment.of_one_image)
