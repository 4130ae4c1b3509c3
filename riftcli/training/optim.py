"""The optimizer, by timm's factory, and the learning rate of each step."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from typing import Any

import torch
from torch import nn

from riftcli.errors import UsageError

FUSED = ("adam", "adamw", "sgd")  # by timm's names, which are torch's own classes


def build_optimizer(
    vit: nn.Module,
    extra: list[nn.Parameter],
    name: str,
    lr: float,
    weight_decay: float,
    layer_decay: float | None = None,
    betas: list[float] | None = None,
    momentum: float | None = None,
    extra_lr_scale: float = 1.0,
    no_weight_decay: tuple[str, ...] = (),
    fused: bool = False,
) -> torch.optim.Optimizer:
    """Groups of the bare timm model (so that its no_weight_decay names match) plus one for `extra`, never decayed.

    no_weight_decay: patterns of further parameter names that are not decayed either. fused: one kernel for all tensors, of the
    optimizers of torch that have it.

    Each group keeps its peak rate in `peak_lr`. timm's layer decay only sets `lr_scale`, which torch's schedulers ignore:
    it is multiplied in here.
    """
    from timm.optim import create_optimizer_v2

    options: dict[str, Any] = {}
    if betas is not None:
        options["betas"] = tuple(betas)
    if momentum is not None:
        options["momentum"] = momentum
    if fused and name in FUSED:
        options["fused"] = True
    model: Any = vit
    spared = {name for name, _ in vit.named_parameters() if any(fnmatch(name, pattern) for pattern in no_weight_decay)}
    spared |= set(model.no_weight_decay()) if hasattr(model, "no_weight_decay") else set()
    try:
        with _named_no_weight_decay(model, spared):
            optimizer = create_optimizer_v2(vit, opt=name, lr=lr, weight_decay=weight_decay, layer_decay=layer_decay, **options)
    except (TypeError, ValueError, AssertionError, ImportError) as error:
        raise UsageError(f"optim.name '{name}' cannot be built with these options: {error}") from error
    if getattr(optimizer, "is_second_order", False):
        raise UsageError(f"optim.name '{name}' needs second derivatives, which are not computed here; choose another optimizer")
    for group in optimizer.param_groups:
        group["peak_lr"] = lr * group.get("lr_scale", 1.0)
    if extra:
        optimizer.add_param_group({"params": extra, "weight_decay": 0.0, "peak_lr": lr * extra_lr_scale})
    return optimizer


@contextmanager
def _named_no_weight_decay(model: Any, names: set[str]) -> Iterator[None]:
    """timm asks the model itself which parameters are not decayed; inside the block it answers with `names`."""
    model.no_weight_decay = lambda: names  # on the instance, in front of the class's own
    try:
        yield
    finally:
        del model.no_weight_decay


def warmup_steps(total_steps: int, share: float, least: int) -> int:
    """Steps in which the rate rises: a share of all, and at least `least` of them (half of a very short run)."""
    return max(math.ceil(share * total_steps), min(least, total_steps // 2)) if share else 0


def lr_factor(step: int, total_steps: int, warmup_steps: int, shape: str) -> float:
    """Learning rate of `step` (0-based) relative to the peak: linear warm-up, then cosine, linear or constant."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if shape == "constant":
        return 1.0
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)  # in [0, 1)
    return 0.5 * (1 + math.cos(math.pi * progress)) if shape == "cosine" else 1 - progress


def set_lr(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Apply the schedule's factor to every group."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor
