"""After every step: is the loss finite, and is the representation still there?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from riftcli import dist, signals
from riftcli.errors import DivergedError
from riftcli.files import write_json
from riftcli.functional.carried_inverse import unsafe
from riftcli.recipe import Recipe
from riftcli.training.state import TrainState
from riftcli.training.step import StepResult

TRACE_BOUNDS = (1 / 3, 3)  # variance of the features relative to the pretrained ones; outside, something broke
GONE = (1 / 100, 100)  # outside, there is no representation left
PATIENCE = 3  # logged steps


@dataclass(frozen=True)
class StepReport:
    """What a step came to, and what is to be done after it; the same on every rank."""

    repeat: bool  # Q has moved further than its inverse could be carried: nothing is to be used of this step
    stop: bool  # a signal came, or the time is up
    save: bool  # launch.save_every_minutes have passed
    task_loss: float  # mean over the global batch
    penalty_loss: float
    grad_norm: float
    variance: float  # of the features that the step saw, summed over dimensions, mean over ranks


def check_health(state: TrainState, result: StepResult, grad_norm: torch.Tensor, index: torch.Tensor) -> StepReport:
    """Raise DivergedError on all ranks, before the optimizer moves, if any loss or gradient is not finite.

    One small exchange, and one wait for the device, per step serves this and what it returns.
    """
    health, carried = result.task_loss + result.penalty_loss + grad_norm, state.setup.step.carried
    for parameter in state.setup.step.penalty_parameters():
        if parameter.grad is not None:
            health = health + parameter.grad.sum()
    sick = ~torch.isfinite(health)
    stop = signals.received() is not None or state.out_of_time()
    orders = torch.stack([sick.new_full((), float(order), dtype=torch.float32) for order in (stop, state.save_is_due())])
    features = result.features
    variance = features.var(0).sum() if len(features) > 1 else features.new_zeros(())
    doubtful = torch.zeros_like(sick) if carried is None else unsafe(carried.error)
    own = torch.stack([sick.float(), doubtful.float(), result.task_loss.float(), variance.float()])
    summed = dist.sum_over_ranks(torch.cat([own, orders]))
    same = torch.stack([result.penalty_loss.float(), grad_norm.float()])
    any_sick, repeat, task, varied, any_stop, any_save, penalty, norm = torch.cat([summed, same]).tolist()
    if repeat or not any_sick:
        count = dist.world_size()
        return StepReport(bool(repeat), bool(any_stop), bool(any_save), task / count, penalty, norm, varied / count)
    losses = {"task": float(result.task_loss), "penalty": float(result.penalty_loss), "grad_norm": float(grad_norm)}
    train = state.setup.data.splits.train
    ids = [train.ids[i % len(train)] for i in index.tolist()]
    ranks = dist.gather_objects({"losses": {k: str(v) for k, v in losses.items()}, "ids": ids})
    if state.folder:
        write_json(state.folder.path / "diverged.json", {"step": state.progress.step + 1, "ranks": ranks})
    shown = ", ".join(f"{name} {value:.4g}" for name, value in losses.items())
    raise DivergedError(
        f"step {state.progress.step + 1}: loss or gradient is not finite ({shown}); the weights were not touched, "
        f"the batch is in {state.place}/diverged.json; try a lower optim.lr, a longer schedule.warmup or train.head_init "
        "linear_probe"
    )


def check_collapse(state: TrainState, row: dict[str, Any]) -> None:
    """Warn once when the variance of the features leaves TRACE_BOUNDS; raise DivergedError when it is gone or has exploded for
    PATIENCE logged steps in a row, unless the recipe says to go on. `row` is the same on every rank.

    One careless step can do it (random head, high rate, short warm-up), and nothing that follows mends it. A network that
    trains from scratch has nothing to lose, and is only warned about.
    """
    if "trace_ratio" not in row:
        return
    ratio, progress, recipe = row["trace_ratio"], state.progress, state.setup.recipe
    if row["step"] == 1 and ratio:
        progress.first_trace = ratio  # batch normalisation, dropout and augmentation are at work in training alone
    gone = ratio is None or not (GONE[0] <= ratio <= GONE[1] or GONE[0] <= ratio / progress.first_trace <= GONE[1])
    progress.collapsed = progress.collapsed + 1 if gone else 0
    if progress.collapsed >= PATIENCE and recipe.train.on_collapse == "stop" and recipe.model.pretrained:
        raise DivergedError(
            f"step {row['step']}: {_collapse(ratio)}, for {PATIENCE} logged steps: nothing is left to keep; the run ends. "
            f"{_remedies(recipe)}; train.on_collapse warn goes on all the same"
        )
    low, high = TRACE_BOUNDS
    if recipe.augment.mixed and ratio is not None:  # mixtures vary less than whole images, of which the pretrained variance is
        ratio /= progress.first_trace
    if progress.warned or (ratio is not None and low <= ratio <= high):
        return
    progress.warned = True
    state.console.warn(f"step {row['step']}: {_collapse(ratio)}. {_remedies(recipe)}")


def _collapse(ratio: float | None) -> str:
    how = "exploded" if ratio is None or ratio > TRACE_BOUNDS[1] else "collapsed"
    times = "no finite number of" if ratio is None else f"{ratio:.2g}"
    return f"the representation has {how}: the variance of the features is {times} times the pretrained one"


def _remedies(recipe: Recipe) -> str:
    """The settings that help, without those that are set already."""
    optim, regularizer = recipe.optim, recipe.regularizer
    steps = {
        "train.head_init linear_probe": recipe.train.head_init != "linear_probe",
        "schedule.warmup 0.1 to 0.15": recipe.schedule.warmup < 0.1,
        "optim.clip_grad 1.0": optim.clip_grad is None or optim.clip_grad > 1,
        "regularizer.normalize relative": getattr(regularizer, "normalize", "relative") != "relative",
        "regularizer.compare features with q fixed": getattr(regularizer, "estimator", "paired") in ("plugin", "debiased"),
        f"a lower optim.lr ({min(4e-5, optim.lr / 3):.0e} or less)": True,
    }
    return "What helps: " + ", ".join(step for step, missing in steps.items() if missing)
