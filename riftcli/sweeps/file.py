"""A sweep file: what it may say, and everything that is wrong with one. No torch here."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from riftcli import recipe as recipes
from riftcli.errors import UsageError, did_you_mean
from riftcli.recipe import strict_yaml
from riftcli.recipe.checker import Checker
from riftcli.recipe.section import Section
from riftcli.recipe.sections import TOP_LEVEL

Scalars = dict[str, Any]


class Range(Section):
    """What Optuna may choose from: numbers between two bounds, or a list."""

    low: int | float | None = Field(None, description="least value; whole numbers give whole numbers")
    high: int | float | None = Field(None, description="greatest value")
    log: bool = Field(False, description="draw its logarithm")
    step: int | float | None = Field(None, gt=0, description="distance between values")
    choices: list[Any] | None = Field(None, description="instead of bounds: a list")

    @property
    def whole(self) -> bool:
        """True where only whole numbers are drawn."""
        return all(isinstance(value, int) for value in (self.low, self.high, self.step or 1))

    def problem(self) -> str | None:
        """What is wrong with it."""
        if self.choices is not None:
            rest = self.low is not None or self.high is not None or self.step is not None or self.log
            return "choices go alone" if rest else None if self.choices else "an empty list: nothing to try"
        if self.low is None or self.high is None:
            return "expected {low: .., high: ..}, or {choices: [..]}"
        if self.low >= self.high:
            return f"low must be below high, got {self.low} and {self.high}"
        if self.log and self.low <= 0:
            return "with log: true low must be above 0"
        return "with log: true there are no steps" if self.log and self.step is not None else None

    def ends(self) -> list[Any]:
        """Its outermost values, or all of a list."""
        return [self.low, self.high] if self.choices is None else self.choices


class OptunaSection(Section):
    """How the settings below `search` are chosen (extra `search`)."""

    trials: int = Field(20, gt=0, description="settings for each row and column")
    sampler: Literal["tpe", "random", "gp", "nsgaii", "qmc"] = Field("tpe", description="how the next one is chosen")
    pruner: Literal["none", "median", "halving", "hyperband"] = Field(
        "none", description="gives settings up early, by the evaluations of their first seed"
    )
    objectives: list[str] = Field(default_factory=list, description="validation metrics; empty is `select`; two give a front")
    at_once: int | None = Field(
        None, gt=0, description="settings that are tried side by side; null is one for each place, 4 on a cluster"
    )
    seed: int = Field(0, ge=0, description="of the sampler")


class Part(Section):
    """What a trial is made of: a recipe, fixed settings, and lists of settings to try."""

    recipe: str | None = Field(None, description="name or path of a recipe; {row}, {column} and parameters are filled in")
    label: str | None = Field(None, description="its name in tables")
    set: Scalars = Field(default_factory=dict, description="dotted recipe key -> value")
    grid: dict[str, list[Any]] = Field(default_factory=dict, description="dotted recipe key -> values: every combination")
    pairs: dict[str, list[Any]] = Field(default_factory=dict, description="the same, but the lists go side by side")
    search: dict[str, Range] = Field(default_factory=dict, description="dotted recipe key -> {low, high, log, step} or {choices}")
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
    optuna: OptunaSection = Field(default_factory=lambda: OptunaSection.model_validate({}), description="how `search` is done")
    slurm: dict[str, int | str | bool] = Field(
        default_factory=dict,
        description="for --on slurm: timeout_min, gpus_per_node, cpus_per_task, mem_gb, partition, ...",
    )
    ray: dict[str, int | float | str] = Field(
        default_factory=dict, description="for --on ray: address, num_cpus, num_gpus, memory, max_retries"
    )
    paper: dict[str, dict[str, list[float | None]]] = Field(
        default_factory=dict, description="row -> column -> published values, one for each of metrics"
    )


def read_sweep_file(path: Path) -> tuple[str, SweepFile]:
    """(text, checked content); raise UsageError with every error at once."""
    text = recipes.read(path, "sweep")
    checker = Checker(text, path.name, "sweep", list(SweepFile.model_fields))
    spec: SweepFile | None = checker.section((), SweepFile, checker.raw)
    if spec is not None:
        _check_lists(checker, spec)
    checker.raise_errors()
    assert spec is not None
    return text, spec


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
        for key, span in part.search.items():
            problem = span.problem() or ("stands in a list of the same part too" if key in {**part.grid, **part.pairs} else None)
            if problem or key in part.set:
                checker.fail((*prefix, "search", key), problem or "stands in `set` of the same part too: give one of them")
        lengths = {len(values) for values in part.pairs.values()}
        if len(lengths) > 1:
            checker.fail((*prefix, "pairs"), f"lists that go side by side have one length, got {sorted(lengths)}")
    if len(spec.optuna.objectives) > 1 and spec.optuna.pruner != "none":
        checker.fail(("optuna", "pruner"), "with several objectives nothing can be given up early; leave it out")
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


def take_parameters(path: Path, spec: SweepFile, overrides: list[str]) -> tuple[Scalars, list[str]]:
    """(parameters with those that --set changes, the other overrides: recipe keys of every trial).

    Raises UsageError for a name that is neither, and for a key that the sweep itself varies: every trial would be the same
    under another name.
    """
    values, rest = dict(spec.parameters), []
    varied = {"train.seed"}
    for part in [spec, *spec.rows.values(), *spec.columns.values()]:
        varied |= {*part.grid, *part.pairs, *part.search} if part else set()
    for override in overrides:
        key, equals, value = override.partition("=")
        if equals and key in values:
            try:
                values[key] = value if isinstance(values[key], str) else strict_yaml.parse(value).data
            except strict_yaml.YamlError as error:
                raise UsageError(f"--set {override}: {error.what}") from error
            continue
        if key.partition(".")[0] not in TOP_LEVEL:
            known = ", ".join(values) or "none"
            close = did_you_mean(key, [*values, *TOP_LEVEL])
            raise UsageError(f"--set {override}: no parameter of {path.name} (it has: {known}) and no recipe key{close}")
        hit = next((own for own in varied if own == key or own.startswith(f"{key}.") or key.startswith(f"{own}.")), None)
        if hit is not None:
            what = "seeds" if hit == "train.seed" else f"the list of {hit}"
            raise UsageError(f"--set {override}: the sweep varies it; change {what} in {path.name}")
        rest.append(override)
    return values, rest
