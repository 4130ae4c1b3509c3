"""A sweep file: YAML in, a checked list of trials out. Every trial is an ordinary recipe with overrides; no torch here."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import string
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import Field

from riftcli import recipe as recipes
from riftcli.errors import UsageError, did_you_mean
from riftcli.recipe import strict_yaml
from riftcli.recipe.check import Checker
from riftcli.recipe.sections import Section

Scalars = dict[str, Any]


class Part(Section):
    """What a trial is made of: a recipe, fixed settings, and lists of settings to try."""

    recipe: str | None = Field(None, description="name or path of a recipe; {row}, {column} and parameters are filled in")
    label: str | None = Field(None, description="its name in tables")
    set: Scalars = Field(default_factory=dict, description="dotted recipe key -> value")
    grid: dict[str, list[Any]] = Field(default_factory=dict, description="dotted recipe key -> values: every combination")
    pairs: dict[str, list[Any]] = Field(default_factory=dict, description="the same, but the lists go side by side")
    also: list[str] = Field(default_factory=list, description="rows whose runs this row chooses among too")


EMPTY = Part.model_validate({})


class SweepFile(Part):
    """The whole file."""

    rows: dict[str, Part | None] = Field(default_factory=dict, description="name -> what makes this row of the table")
    columns: dict[str, Part | None] = Field(default_factory=dict, description="name -> what makes this column, e.g. a data set")
    parameters: Scalars = Field(
        default_factory=dict, description="names for {name} in the texts of this file; --set changes them"
    )
    seeds: list[int] | int = Field(1, description="a number of seeds from 0, or which")
    select: str | None = Field(None, description="validation metric that chooses among the settings of a row; null is eval.best")
    within: float = Field(
        0.0, ge=0, description="settings this little below the best of a row count as equal; the one that keeps most"
    )
    metrics: list[str] = Field(default_factory=lambda: ["acc or map", "cka"], min_length=1, description="of the table")
    baseline: str | None = Field(None, description="row that changes refer to")
    slurm: dict[str, int | str | bool] = Field(
        default_factory=dict,
        description="for --on slurm: timeout_min, gpus_per_node, cpus_per_task, mem_gb, partition, ...",
    )
    paper: dict[str, dict[str, list[float | None]]] = Field(
        default_factory=dict, description="row -> column -> published values, one for each of metrics"
    )


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
        trials = [
            {key: getattr(trial, key) for key in ("name", "group", "row", "column", "settings", "seed", "recipe", "overrides")}
            for trial in self.trials
        ]
        return {**{key: getattr(self, key) for key in keys}, "trials": trials}


def read_plan(path: Path, overrides: list[str]) -> Plan:
    """Read a sweep file and expand it; raise UsageError with every error of the file, or of the recipes it makes."""
    text = recipes.read(path)
    try:
        document = strict_yaml.parse(text)
    except strict_yaml.YamlError as error:
        raise UsageError(f"sweep {path.name}:{error.line}: {error.what}") from error
    if not isinstance(document.data, dict):
        raise UsageError(f"sweep {path.name}:1: a sweep is a mapping with the keys {', '.join(SweepFile.model_fields)}")
    checker = Checker(path.name, document, "sweep")
    spec: SweepFile | None = checker.section((), SweepFile, document.data)
    if spec is not None:
        _check_lists(checker, spec)
    checker.raise_errors()
    assert spec is not None
    own, others = _parameters(path, spec, overrides)
    plan = _expand(path, text, spec, own, others, overrides)
    _check_recipes(path, plan)
    return plan


def _check_lists(checker: Checker, spec: SweepFile) -> None:
    """What pydantic cannot see: lengths, names, and rows that nobody defines."""
    parts: list[tuple[tuple[str, ...], Part | None]] = [((), spec)]
    parts += [(("rows", name), part) for name, part in spec.rows.items()]
    parts += [(("columns", name), part) for name, part in spec.columns.items()]
    for prefix, part in parts:
        if part is None:
            continue
        for kind in ("grid", "pairs"):
            for key, values in getattr(part, kind).items():
                if key in part.set:
                    checker.fail((*prefix, kind, key), "stands in `set` of the same part too: give one of them")
                if not values:
                    checker.fail((*prefix, kind, key), "an empty list: nothing to try")
        lengths = {len(values) for values in part.pairs.values()}
        if len(lengths) > 1:
            checker.fail((*prefix, "pairs"), f"lists that go side by side have one length, got {sorted(lengths)}")
    seeds = range(spec.seeds) if isinstance(spec.seeds, int) else spec.seeds
    if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0:
        checker.fail(("seeds",), f"expected a number of 1 or more, or different seeds, got {spec.seeds}")
    names = list(spec.rows) or ["all"]
    for key in ([spec.baseline] if spec.baseline else []) + list(spec.paper):
        if key not in names:
            where: tuple[str, ...] = ("paper", key) if key in spec.paper else ("baseline",)
            checker.fail(where, f"no such row '{key}'{did_you_mean(key, names)}", names)
    for row, part in spec.rows.items():
        for other in part.also if part else []:
            if other not in spec.rows or other == row:
                checker.fail(("rows", row, "also"), f"no such other row '{other}'{did_you_mean(other, names)}", names)
    for row, cells in spec.paper.items():
        for column, values in cells.items():
            if column not in (list(spec.columns) or ["all"]):
                checker.fail(("paper", row, column), "no such column", list(spec.columns) or ["all"])
            elif len(values) != len(spec.metrics):
                checker.fail(("paper", row, column), f"expected {len(spec.metrics)} values, one for each of metrics")
    named = [bool(parts) and all(p and p.recipe for p in parts.values()) for parts in (spec.rows, spec.columns)]
    if spec.recipe is None and not any(named):
        checker.fail(("recipe",), "missing: name a recipe here, or in every row or column")


def _parameters(path: Path, spec: SweepFile, overrides: list[str]) -> tuple[Scalars, list[str]]:
    """(parameters with those that --set changes, the other overrides: recipe keys of every trial).

    Raises UsageError for a key that the sweep itself varies: every trial would be the same under another name.
    """
    values, rest = dict(spec.parameters), []
    varied = {"train.seed"}
    for part in [spec, *spec.rows.values(), *spec.columns.values()]:
        varied |= {*part.grid, *part.pairs} if part else set()
    for override in overrides:
        key, equals, value = override.partition("=")
        if equals and key in values:
            try:
                values[key] = value if isinstance(values[key], str) else strict_yaml.parse(value).data
            except strict_yaml.YamlError as error:
                raise UsageError(f"--set {override}: {error.what}") from error
            continue
        hit = next((own for own in varied if own == key or own.startswith(f"{key}.") or key.startswith(f"{own}.")), None)
        if hit is not None:
            what = "seeds" if hit == "train.seed" else f"the list of {hit}"
            raise UsageError(f"--set {override}: the sweep varies it; change {what} in {path.name}")
        rest.append(override)
    return values, rest


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
    trials.sort(key=lambda trial: seeds.index(trial.seed))  # the whole table once, before it is made sharper
    labels = [{name: part.label or name for name, part in parts.items()} for parts in (rows, columns)]
    also = {name: part.also for name, part in rows.items() if part.also}
    how = {key: getattr(spec, key) for key in ("select", "within", "metrics", "baseline", "paper", "slurm")}
    return Plan(path.stem, text, trials, labels[0], labels[1], arguments=arguments, also=also, **how)


def _combinations(*parts: Part) -> Iterator[Scalars]:
    """Every combination of the grids and of the pairs of all parts; where two parts list the same key, the last one's list."""
    grid: dict[str, list[Any]] = {}
    for part in parts:
        grid |= part.grid
    fixed = {key for part in parts for key in part.set}
    choices = [[{key: value} for value in values] for key, values in grid.items() if key not in fixed or key in parts[-1].grid]
    for part in parts:
        if part.pairs:
            length = len(next(iter(part.pairs.values())))
            choices.append([{key: values[i] for key, values in part.pairs.items()} for i in range(length)])
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


def _check_recipes(path: Path, plan: Plan) -> None:
    """Parse every trial's recipe; raise UsageError with each different error once."""
    errors: dict[str, str] = {}
    folders: dict[str, Trial] = {}
    for trial in plan.trials:
        other = folders.setdefault(trial.name, trial)
        if other is not trial:
            errors.setdefault(f"two trials have the folder {trial.name}: a value stands twice in a list", "")
        try:
            watched = recipes.load(trial.recipe, trial.overrides).watched
            if plan.select is not None and plan.select not in watched:
                close = did_you_mean(plan.select, watched)
                errors.setdefault(
                    f"select '{plan.select}': not measured{close}; it is one of eval.metrics: {', '.join(watched)}", ""
                )
        except UsageError as error:
            errors.setdefault(str(error), trial.name)
    if errors:
        lines = [f"trial {trial}: {text}" if trial else text for text, trial in list(errors.items())[:5]]
        more = f"\n  and {len(errors) - 5} more" if len(errors) > 5 else ""
        raise UsageError(f"sweep {path.name}: " + "\n".join(lines) + more)
