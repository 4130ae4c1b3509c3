"""After every step: is the loss finite, and is the representation still there?"""

from __future__ import annotations

from typing import Any

import torch

from riftcli import dist
from riftcli.errors import DivergedError
from riftcli.runs import folder as runs
from riftcli.training.state import TrainState
from riftcli.training.step import StepResult

TRACE_BOUNDS = (1 / 3, 3)  # variance of the features relative to the pretrained ones; outside, something broke


def check_health(state: TrainState, result: StepResult, grad_norm: torch.Tensor, index: torch.Tensor) -> bool:
    """Raise DivergedError on all ranks, before the optimizer moves, if any loss or gradient is not finite.

    Returns True when any rank was told to stop. One small exchange per step serves both questions.
    """
    health = result.task_loss + result.penalty_loss + grad_norm
    for parameter in state.setup.step.penalty_parameters():
        if parameter.grad is not None:
            health = health + parameter.grad.sum()
    sick = ~torch.isfinite(health)
    flags = torch.stack([sick.float(), torch.tensor(float(state.stop.received), device=sick.device)])
    any_sick, any_stop = dist.sum_over_ranks(flags).tolist()
    if not any_sick:
        return bool(any_stop)
    losses = {"task": float(result.task_loss), "penalty": float(result.penalty_loss), "grad_norm": float(grad_norm)}
    ids = [state.setup.data.splits.train.ids[i] for i in index.tolist()]
    ranks = dist.gather_objects({"losses": {k: str(v) for k, v in losses.items()}, "ids": ids})
    if state.folder:
        runs.write_json(state.folder.path / "diverged.json", {"step": state.progress.step + 1, "ranks": ranks})
    shown = ", ".join(f"{name} {value:.4g}" for name, value in losses.items())
    raise DivergedError(
        f"step {state.progress.step + 1}: loss or gradient is not finite ({shown}); the weights were not touched, "
        f"the batch is in {state.place}/diverged.json; try a lower optim.lr, a longer schedule.warmup or train.head_init "
        "linear_probe"
    )


def warn_collapse(state: TrainState, row: dict[str, Any]) -> None:
    """Once and clearly: one careless step can do it (random head, high rate, short warm-up)."""
    ratio = row.get("trace_ratio", 1.0)
    low, high = TRACE_BOUNDS
    if state.progress.warned or (ratio is not None and low <= ratio <= high):
        return
    state.progress.warned = True
    how = "exploded" if ratio is None or ratio > high else "collapsed"
    times = "no finite number of" if ratio is None else f"{ratio:.2f}"
    state.console.warn(
        f"step {row['step']}: the representation has {how}: the variance of the features is {times} times the pretrained one. "
        "What helps: train.head_init linear_probe, a lower optim.lr (<= 4e-5), schedule.warmup 0.1 to 0.15, "
        "optim.clip_grad 1.0, regularizer.normalize relative"
    )
