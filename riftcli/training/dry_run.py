"""rift finetune --dry-run: every value with its source, one batch forward and backward, what it will need; writes nothing."""

from __future__ import annotations

import dataclasses

from riftcli import dist
from riftcli.console import Console
from riftcli.recipe import Recipe, flatten
from riftcli.runs.provenance import peak_memory_bytes
from riftcli.training.cost import disk_bytes
from riftcli.training.setup import set_up
from riftcli.training.strength import Steering


def dry_run(recipe: Recipe, device: str) -> None:
    """Print to stdout and leave no file behind."""
    values = flatten(recipe.resolved)
    width = max(map(len, values))
    for key, value in values.items():
        shown = "null" if value is None else str(value).lower() if isinstance(value, bool) else value
        print(f"{key:<{width}}  {recipe.sources[key]:<8} {shown}")
    plain = dataclasses.replace(  # without the store of images: nothing is to be written
        recipe,
        input=recipe.input.model_copy(update={"cache": None, "cache_short_side": None}),
        launch=recipe.launch.model_copy(update={"image_memory": 0}),
    )
    setup = set_up(plain, dist.init(device), Console())
    if recipe.strength is not None:
        Steering(setup)
    batch = next(dataclasses.replace(setup.batches, workers=0).load(0))
    setup.network.classifier.train()
    result = setup.step({"task": batch, **next(setup.beside(0))})
    print(f"one batch: task loss {float(result.task_loss):.4f}, penalty {float(result.penalty_loss):.4f}")
    optimizer = setup.step.optimizer
    assert optimizer is not None
    weights = sum(p.numel() * p.element_size() for p in setup.network.vit.parameters())
    trained = sum(p.numel() * p.element_size() for group in optimizer.param_groups for p in group["params"])
    memory = peak_memory_bytes(setup.device)
    if setup.device.type == "cuda":
        memory += 2 * trained  # the optimizer's moments are not there yet
    disk = disk_bytes(weights, trained, setup.average is not None, recipe.train.shard_frozen)
    print(f"memory: about {memory / 1e9:.2f} GB on {setup.device}; disk: about {disk / 1e6:.0f} MB")
    print(f"steps: {setup.total_steps} ({setup.batches.steps_per_epoch} an epoch); nothing was written")
