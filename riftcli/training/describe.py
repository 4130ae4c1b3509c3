"""What a run says about itself before the first step: data, classes, weights, model, batch."""

from __future__ import annotations

from typing import Any

import torch

from riftcli import dist
from riftcli.console import Console
from riftcli.data.classes import class_counts
from riftcli.data.reading import print_ignored
from riftcli.models.sharding import held_bytes, is_sharded
from riftcli.recipe import Recipe
from riftcli.training.data import RunData

MANY_CLASSES = 30  # above, only the rarest are printed


def print_data(recipe: Recipe, data: RunData, console: Console) -> None:
    """Sizes of the splits, images per class, and classes without any."""
    train, val, test = data.splits.train, data.splits.val, data.splits.test
    console.line(
        f"data: {recipe.data.name}, {len(train)} train, {len(val) if val else 0} validation, {len(test) if test else 0} test, "
        f"{len(train.classes)} classes"
    )
    told: list[dict[str, int]] = []
    for name, split in data.splits.named().items():
        if split.ignored not in told:  # splits that were cut from one folder have its files in common
            print_ignored(f"split '{name}'", split.ignored, console)
        told.append(split.ignored)
    if test is None:
        console.line("data: no test split: the report is on validation, which also chooses the weights")
    counts = class_counts(train)
    few = len(counts) <= MANY_CLASSES
    printed = list(counts.items()) if few else sorted(counts.items(), key=lambda pair: pair[1])[:3]
    console.line(f"data: {'' if few else 'rarest '}classes in train: {', '.join(f'{name} {count}' for name, count in printed)}")
    for name in [name for name, count in counts.items() if count == 0][:5]:
        console.warn(f"class '{name}' has no training image")


def print_imbalance(recipe: Recipe, classes: list[str], weights: torch.Tensor | None, console: Console) -> None:
    """Class weights and the sampler, where they are not the default."""
    if weights is not None:
        pairs = sorted(zip(classes, weights.tolist(), strict=True), key=lambda pair: -pair[1])
        few = pairs if len(pairs) <= MANY_CLASSES else pairs[:3]
        console.line(f"class weights: {', '.join(f'{name} {weight:.3g}' for name, weight in few)}")
    if recipe.train.sampler == "balanced":
        goal = "every class is equally likely" if recipe.objective.task == "multiclass" else "rare classes come more often"
        console.line(f"sampler: balanced, drawn with replacement so that {goal}")


def print_model(recipe: Recipe, vit: Any, console: Console) -> None:
    """Parameters, those that train, and the method."""
    trainable = sum(p.numel() for p in vit.parameters() if p.requires_grad)
    console.line(
        f"model: {recipe.model.name}, {sum(p.numel() for p in vit.parameters()):,} parameters, {trainable:,} trainable; "
        f"{recipe.component_name('adapter')} + {recipe.component_name('regularizer')}"
    )
    if is_sharded(vit):
        held, whole = held_bytes(vit)
        console.line(
            f"frozen blocks: shared out over {dist.world_size()} ranks, {held / 1e6:.1f} of {whole / 1e6:.1f} MB on each"
        )


def print_batch(
    recipe: Recipe, micro: int, accumulation: int, per_epoch: int, device: torch.device, precision: str, console: Console
) -> None:
    """How the global batch is divided, and how many steps there are."""
    ranks = dist.world_size()
    console.line(
        f"batch: {recipe.train.batch_size} = {ranks} rank{'s' * (ranks > 1)} x {micro} x {accumulation}; "
        f"{per_epoch} steps x {recipe.train.epochs} epochs on {device}, {precision}"
    )
