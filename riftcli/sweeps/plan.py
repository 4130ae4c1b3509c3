"""From a sweep file to its trials, each an ordinary recipe with overrides. No torch here."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import string
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from riftcli import recipe as recipes
from riftcli.errors import UsageError, did_you_mean
from riftcli.recipe import Recipe
from riftcli.sweeps.file import EMPTY, Part, Scalars, SweepFile, read_sweep_file, take_parameters


@dataclass(frozen=True)
class Trial:
    """One run. group: folder that its seeds share; settings: what was tried, beside the row's and column's own."""

    group: str
    row: str
    column: str
    settings: Scalars
    seed: int
    recipe: str
    overrides: list[str]
    digest: str = ""  # of the resolved recipe: the same for the same run

    @property
    def name(self) -> str:
        """Its folder below trials/."""
        return f"{self.group}/s{self.seed}"


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
    arguments: list[str] = field(default_factory=list)  # --set, as given

    def described(self) -> dict[str, Any]:
        """What sweep.json holds, beside the text: enough to read the folder without this file."""
        keys = ("name", "rows", "columns", "select", "within", "metrics", "baseline", "paper", "also", "arguments")
        trials = [{"name": trial.name, **asdict(trial)} for trial in self.trials]
        return {**{key: getattr(self, key) for key in keys}, "trials": trials}


def read_plan(path: Path, overrides: list[str]) -> Plan:
    """Read a sweep file and expand it; raise UsageError with every error of the file, or of the recipes it makes."""
    text, spec = read_sweep_file(path)
    parameters, others = take_parameters(path, spec, overrides)
    return _expand(path, text, spec, parameters, others, overrides)


def _expand(path: Path, text: str, spec: SweepFile, parameters: Scalars, overrides: list[str], arguments: list[str]) -> Plan:
    rows = {name: part or EMPTY for name, part in (spec.rows or {"all": None}).items()}
    columns = {name: part or EMPTY for name, part in (spec.columns or {"all": None}).items()}
    seeds = list(range(spec.seeds)) if isinstance(spec.seeds, int) else list(spec.seeds)
    trials = []
    for (column, of_column), (row, of_row) in itertools.product(columns.items(), rows.items()):
        fill = {**parameters, "row": row, "column": column}
        recipe = _filled(of_row.recipe or of_column.recipe or spec.recipe or "", fill, path)
        fixed = {**spec.set, **of_column.set, **of_row.set}
        for settings in _combinations(spec, of_column, of_row):
            group = _group([column] * bool(spec.columns), [row] * bool(spec.rows), settings)
            for seed in seeds:
                wanted = {**fixed, **settings, "train.seed": seed}
                own = [f"{key}={json.dumps(_filled(value, fill, path), ensure_ascii=False)}" for key, value in wanted.items()]
                trials.append(Trial(group, row, column, settings, seed, _beside(path, recipe), [*own, *overrides]))
    trials = _checked(path, trials, spec.select)
    trials.sort(key=lambda trial: seeds.index(trial.seed))  # the whole table once, before it is made sharper
    labels = [{name: part.label or name for name, part in parts.items()} for parts in (rows, columns)]
    also = {name: part.also for name, part in rows.items() if part.also}
    how = {key: getattr(spec, key) for key in ("select", "within", "metrics", "baseline", "paper", "slurm")}
    return Plan(path.stem, text, trials, labels[0], labels[1], arguments=arguments, also=also, **how)


def _combinations(*parts: Part) -> Iterator[Scalars]:
    """Every combination of the grids and of the pairs of all parts, the most specific part last: what it sets is fixed, and its
    list for a key takes the place of another part's.
    """
    grid: dict[str, list[Any]] = {}
    pairs: list[dict[str, list[Any]]] = []
    for part in parts:
        grid = {key: values for key, values in grid.items() if key not in part.set} | part.grid
        pairs = [{key: values for key, values in lists.items() if key not in part.set} for lists in [*pairs]] + [part.pairs]
    choices = [[{key: value} for value in values] for key, values in grid.items()]
    for lists in pairs:
        if lists:
            length = len(next(iter(lists.values())))
            choices.append([{key: values[i] for key, values in lists.items()} for i in range(length)])
    for chosen in itertools.product(*choices):
        yield {key: value for settings in chosen for key, value in settings.items()}


def _filled(value: Any, fill: Scalars, path: Path) -> Any:
    """Parameters put into texts, at any depth; raise UsageError for a name that is none."""
    if isinstance(value, dict):
        return {key: _filled(inner, fill, path) for key, inner in value.items()}
    if isinstance(value, list):
        return [_filled(inner, fill, path) for inner in value]
    if not isinstance(value, str) or "{" not in value:
        return value
    if value[1:-1] in fill and value == f"{{{value[1:-1]}}}":
        return fill[value[1:-1]]  # alone, a number stays a number, and null is null
    try:
        names = [name for _, name, _, _ in string.Formatter().parse(value) if name is not None]
        for name in names:
            if name not in fill:
                raise UsageError(f"sweep {path.name}: '{value}': no such parameter '{name}'{did_you_mean(name, list(fill))}")
        return value.format(**fill)
    except ValueError as error:
        raise UsageError(
            f"sweep {path.name}: '{value}': {error}; write {{{{ and }}}} for braces that stand for themselves"
        ) from None


def _group(column: list[str], row: list[str], settings: Scalars) -> str:
    """The name of a folder: column, row and what is tried, with the shortest ends of the keys that differ."""
    ends = [key.rpartition(".")[2] for key in settings]
    words = [*column, *row]
    for key, end in zip(settings, ends, strict=True):
        value = settings[key]
        shown = value if isinstance(value, str | int | float) else json.dumps(value)
        words.append(f"{end if ends.count(end) == 1 else key}={shown}")
    whole = "-".join(words) or "all"
    name = re.sub(r"[^A-Za-z0-9._=+-]+", "_", whole).strip("_.")
    return name if len(name) <= 150 else f"{name[:140]}-{hashlib.sha256(whole.encode()).hexdigest()[:9]}"


def _beside(path: Path, recipe: str) -> str:
    """A recipe file is looked for beside the sweep file first."""
    beside = path.parent / recipe
    return str(beside) if beside.is_file() else recipe


def _checked(path: Path, trials: list[Trial], select: str | None) -> list[Trial]:
    """The trials with the digests of their recipes; raise UsageError with each different error of them once."""
    errors: dict[str, str] = {}
    found: dict[str, Trial] = {}
    for trial in trials:
        if trial.name in found:
            errors.setdefault(f"two trials have the folder {trial.name}: a value stands twice in a list", "")
        found[trial.name] = trial
        try:
            recipe = recipes.load(trial.recipe, trial.overrides)
        except UsageError as error:
            errors.setdefault(str(error), trial.name)
            continue
        if select is not None and select not in recipe.watched:
            known = ", ".join(recipe.watched)
            close = did_you_mean(select, recipe.watched)
            errors.setdefault(f"select '{select}': not measured{close}; it is one of eval.metrics: {known}", "")
        found[trial.name] = replace(trial, digest=digest_of(recipe))
    if errors:
        lines = [f"trial {trial}: {text}" if trial else text for text, trial in list(errors.items())[:5]]
        more = f"\n  and {len(errors) - 5} more" if len(errors) > 5 else ""
        raise UsageError(f"sweep {path.name}: " + "\n".join(lines) + more)
    return list(found.values())


def digest_of(recipe: Recipe) -> str:
    """sha256 over every value of a recipe."""
    return hashlib.sha256(json.dumps(recipe.resolved, sort_keys=True).encode()).hexdigest()
