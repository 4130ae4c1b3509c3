"""What a sweep will cost, before it runs: trials, hours from a measured step, disk."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from riftcli.data.batches import steps_per_epoch
from riftcli.data.splits import load_splits
from riftcli.errors import DataError
from riftcli.recipe import Recipe
from riftcli.sweeps.plan import Plan
from riftcli.training.cost import StepCost, measure_step


@dataclass(frozen=True)
class Estimate:
    """Of one row. hours and disk_bytes are None where the data is not there to be counted; why says so."""

    row: str
    runs: int
    steps: int | None
    hours: float | None
    disk_bytes: float | None
    why: str | None = None


def estimate(plan: Plan, device: str) -> list[Estimate]:
    """One entry per row. A step is measured once for each different network and method, on made-up images."""
    costs: dict[str, StepCost] = {}
    counted: dict[str, tuple[int, int] | str] = {}
    found = []
    for row, label in plan.rows.items():
        trials = [trial for trial in plan.trials if trial.row == row]
        for cell in plan.cells:  # settings that nobody knows yet: as the first corner of their space
            trials += cell.make(cell.corners()[0]) * (plan.optuna.trials if cell.template.row == row else 0)
        steps, seconds, disk, why = 0, 0.0, 0.0, None
        for trial in trials:
            recipe = plan.texts.of(trial)
            size = _size(recipe, counted)
            if isinstance(size, str):
                why = size
                break
            samples, classes = size
            key = repr(
                [recipe.resolved[part] for part in ("model", "adapter", "regularizer", "augment", "reference")] + [classes]
            )
            if key not in costs:
                costs[key] = measure_step(recipe, classes, device)
            own = steps_per_epoch(samples, recipe.train.batch_size) * recipe.train.epochs
            steps += own
            seconds += own * recipe.train.batch_size * costs[key].seconds_per_image
            disk += costs[key].weight_bytes
        unknown = why is not None
        found.append(
            Estimate(
                label,
                len(trials),
                None if unknown else steps,
                None if unknown else seconds / 3600,
                None if unknown else disk,
                why,
            )
        )
    return found


def _size(recipe: Recipe, counted: dict[str, Any]) -> tuple[int, int] | str:
    """(training images, classes), or why they are not known."""
    key = repr(recipe.resolved["data"])
    if key not in counted:
        data = recipe.data
        try:
            splits = load_splits(data.source, data.train, data.val, data.test, data.rules)
            counted[key] = len(splits.train), len(splits.train.classes)
        except DataError as error:
            counted[key] = str(error).splitlines()[0]
    return counted[key]
