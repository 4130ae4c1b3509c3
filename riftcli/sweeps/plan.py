"""From a sweep file to its trials, each an ordinary recipe with overrides. No torch here."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from riftcli.errors import UsageError, did_you_mean
from riftcli.recipe import Recipe
from riftcli.sweeps.file import EMPTY, OptunaSection, Part, Range, Scalars, SweepFile, read_sweep_file, take_parameters
from riftcli.sweeps.points import GEOMETRY, OF_CAPTIONS, OTHER, RETENTION, TRANSFER
from riftcli.sweeps.trial import RecipeTexts, Template, Trial, group_name


@dataclass(frozen=True)
class Cell:
    """Where Optuna chooses: one row and column, with one choice of the lists. objectives: validation metrics that it is after."""

    template: Template
    settings: Scalars
    space: dict[str, Range]
    objectives: list[str]
    check: Callable[[list[Trial]], list[Trial]]

    @property
    def name(self) -> str:
        """Unique within the sweep."""
        return group_name(self.template.words, self.settings)

    def make(self, chosen: Scalars) -> list[Trial]:
        """The trials of a point of the space, one for each seed; raise UsageError where no recipe allows it."""
        return self.check(self.template.trials({**self.settings, **chosen}))

    def corners(self) -> list[Scalars]:
        """Points on the border: each end of each range, or each of a list, with the first of all others."""
        first = {key: span.ends()[0] for key, span in self.space.items()}
        return [first, *({**first, key: value} for key, span in self.space.items() for value in span.ends()[1:])]


@dataclass(frozen=True)
class Plan:
    """All trials of a sweep, and how its table is to be read."""

    name: str
    text: str
    trials: list[Trial]
    rows: dict[str, str]  # name -> label
    columns: dict[str, str]
    select: str | None
    within: float
    metrics: list[str]
    baseline: str | None
    paper: dict[str, dict[str, list[float | None]]]
    also: dict[str, list[str]]  # row -> rows that it chooses among too
    slurm: dict[str, Any] = field(default_factory=dict)
    ray: dict[str, Any] = field(default_factory=dict)
    cells: list[Cell] = field(default_factory=list)
    optuna: OptunaSection = field(default_factory=lambda: OptunaSection.model_validate({}))
    arguments: list[str] = field(default_factory=list)  # --set, as given
    texts: RecipeTexts = field(default_factory=RecipeTexts)

    def described(self) -> dict[str, Any]:
        """What sweep.json holds, beside the text: enough to read the folder without this file."""
        keys = ("name", "rows", "columns", "select", "within", "metrics", "baseline", "paper", "also", "arguments")
        trials = [{"name": trial.name, **asdict(trial)} for trial in self.trials]
        return {**{key: getattr(self, key) for key in keys}, "trials": trials}

    def plus(self, trials: list[Trial]) -> Plan:
        """With further trials; those of a name that is there are left out."""
        names = {trial.name for trial in self.trials}
        return replace(self, trials=[*self.trials, *(trial for trial in trials if trial.name not in names)])


def read_plan(path: Path, overrides: list[str]) -> Plan:
    """Read a sweep file and expand it; raise UsageError with every error of the file, or of the recipes it makes."""
    text, spec = read_sweep_file(path)
    parameters, others = take_parameters(path, spec, overrides)
    return _expand(path, text, spec, parameters, others, overrides)


def _expand(path: Path, text: str, spec: SweepFile, parameters: Scalars, overrides: list[str], arguments: list[str]) -> Plan:
    rows = {name: part or EMPTY for name, part in (spec.rows or {"all": None}).items()}
    columns = {name: part or EMPTY for name, part in (spec.columns or {"all": None}).items()}
    seeds = list(range(spec.seeds)) if isinstance(spec.seeds, int) else list(spec.seeds)
    trials: list[Trial] = []
    cells: list[Cell] = []
    texts = RecipeTexts()
    for (column, of_column), (row, of_row) in itertools.product(columns.items(), rows.items()):
        fill = {**parameters, "row": row, "column": column}
        words = [column] * bool(spec.columns) + [row] * bool(spec.rows)
        recipe = of_row.recipe or of_column.recipe or spec.recipe or ""
        fixed = {**spec.set, **of_column.set, **of_row.set}
        template = Template(row, column, words, recipe, fixed, fill, overrides, seeds, path)
        parts = (spec, of_column, of_row)
        space = _space(*parts)
        for settings in _combinations(*parts):
            if space:
                check = partial(_checked, path, texts, spec.select)
                cells.append(Cell(template, settings, space, spec.optuna.objectives, check))
            else:
                trials += template.trials(settings)
    trials = _checked(path, texts, spec.select, trials)
    corners = {cell.name: _corners(path, texts, cell) for cell in cells}
    _check_metrics(path, spec.metrics, [texts.of(trial) for trial in [*trials, *(own[0] for own in corners.values())]])
    cells = [_with_objectives(path, cell, texts.of(corners[cell.name][0]), spec.select) for cell in cells]
    trials.sort(key=lambda trial: seeds.index(trial.seed))  # the whole table once, before it is made sharper
    labels = [{name: part.label or name for name, part in parts.items()} for parts in (rows, columns)]
    also = {name: part.also for name, part in rows.items() if part.also}
    how = {key: getattr(spec, key) for key in ("select", "within", "metrics", "baseline", "paper", "slurm", "ray", "optuna")}
    return Plan(path.stem, text, trials, labels[0], labels[1], arguments=arguments, also=also, cells=cells, texts=texts, **how)


def _corners(path: Path, texts: RecipeTexts, cell: Cell) -> list[Trial]:
    """Trials on the border of a space; raise UsageError where one is no recipe. A point within may still be none."""
    trials = [trial for chosen in cell.corners() for trial in cell.template.trials({**cell.settings, **chosen})]
    return _checked(path, texts, None, trials)


def _with_objectives(path: Path, cell: Cell, recipe: Recipe, select: str | None) -> Cell:
    """The cell with what it is after written out. recipe: one of its own; raise UsageError where that does not measure it."""
    if recipe.data.val is None:
        raise UsageError(f"sweep {path.name}: search: settings are chosen on validation images: set data.val")
    names = cell.objectives or [select or recipe.eval.best]
    for name in names:
        if name not in recipe.watched:
            key = "optuna.objectives" if cell.objectives else "select"
            raise UsageError(f"sweep {path.name}: {_not_measured(key, name, recipe)}")
    return replace(cell, objectives=names)


def _space(*parts: Part) -> dict[str, Range]:
    """What is searched, the most specific part last: what it sets or lists is not."""
    space: dict[str, Range] = {}
    for part in parts:
        listed = {*part.set, *part.grid, *part.pairs}
        space = {key: span for key, span in space.items() if key not in listed} | part.search
    return space


def _combinations(*parts: Part) -> Iterator[Scalars]:
    """Every combination of the grids and of the pairs of all parts, the most specific part last: what it sets is fixed, and its
    list for a key takes the place of another part's.
    """
    grid: dict[str, list[Any]] = {}
    pairs: list[dict[str, list[Any]]] = []
    for part in parts:
        gone = {*part.set, *part.search}
        grid = {key: values for key, values in grid.items() if key not in gone} | part.grid
        pairs = [{key: values for key, values in lists.items() if key not in gone} for lists in [*pairs]] + [part.pairs]
    choices = [[{key: value} for value in values] for key, values in grid.items()]
    for lists in pairs:
        if lists:
            length = len(next(iter(lists.values())))
            choices.append([{key: values[i] for key, values in lists.items()} for i in range(length)])
    for chosen in itertools.product(*choices):
        yield {key: value for settings in chosen for key, value in settings.items()}


def _checked(path: Path, texts: RecipeTexts, select: str | None, trials: list[Trial]) -> list[Trial]:
    """The trials with the digests of their recipes; raise UsageError with each different error of them once."""
    errors: dict[str, str] = {}
    found: dict[str, Trial] = {}
    for trial in trials:
        if trial.name in found:
            errors.setdefault(f"two trials have the folder {trial.name}: a value stands twice in a list", "")
        found[trial.name] = trial
        try:
            recipe = texts.of(trial)
        except UsageError as error:
            errors.setdefault(str(error), trial.name)
            continue
        if select is not None and select not in recipe.watched:
            errors.setdefault(_not_measured("select", select, recipe), "")
        found[trial.name] = replace(trial, digest=digest_of(recipe))
    if errors:
        lines = [f"trial {trial}: {text}" if trial else text for text, trial in list(errors.items())[:5]]
        more = f"\n  and {len(errors) - 5} more" if len(errors) > 5 else ""
        raise UsageError(f"sweep {path.name}: " + "\n".join(lines) + more)
    return list(found.values())


OF_SETS = [*RETENTION, *TRANSFER, *GEOMETRY, *OF_CAPTIONS]  # columns that name a set, whose name only its data knows


def _check_metrics(path: Path, metrics: list[str], trials: list[Recipe]) -> None:
    """Raise UsageError for a column of the table that no trial measures. What a retention set is called, only its data knows."""
    measured = {name for recipe in trials for name in recipe.eval.metrics}
    for name in metrics:
        kind, space, _ = name.partition(" ")
        if name in measured or name in OTHER or (space and kind in OF_SETS):
            continue
        known = [*sorted(measured), *OTHER, *(f"{kind} SET" for kind in OF_SETS)]
        close = did_you_mean(name, known)
        raise UsageError(
            f"sweep {path.name}: metrics: '{name}': not measured by any trial{close}; allowed here: {', '.join(known)}"
        )


def _not_measured(key: str, name: str, recipe: Recipe) -> str:
    close = did_you_mean(name, recipe.watched)
    return f"{key} '{name}': not measured{close}; it is one of eval.metrics: {', '.join(recipe.watched)}"


def digest_of(recipe: Recipe) -> str:
    """sha256 over every value of a recipe."""
    return hashlib.sha256(json.dumps(recipe.resolved, sort_keys=True).encode()).hexdigest()
