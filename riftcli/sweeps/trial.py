"""One run of a sweep, and what the runs of one row and column have in common. No torch here."""

from __future__ import annotations

import hashlib
import json
import re
import string
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from riftcli import recipe as recipes
from riftcli.errors import UsageError, did_you_mean
from riftcli.recipe import Recipe
from riftcli.sweeps.file import Scalars


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


class RecipeTexts:
    """The recipes of a sweep, each read and checked once: one that is edited while the sweep runs does not change it."""

    def __init__(self) -> None:
        self._read: dict[str, tuple[str, str]] = {}
        self._checked: dict[tuple[str, ...], Recipe] = {}

    def source(self, name: str) -> tuple[str, str]:
        """(text, file name); raise UsageError where there is none."""
        if name not in self._read:
            self._read[name] = recipes.source(name)
        return self._read[name]

    def of(self, trial: Trial) -> Recipe:
        """The checked recipe of a trial; raise UsageError with every error."""
        key = (trial.recipe, *trial.overrides)
        if key not in self._checked:
            self._checked[key] = recipes.parse(*self.source(trial.recipe), trial.overrides)
        return self._checked[key]


@dataclass(frozen=True)
class Template:
    """One row in one column: settings make its trials. fixed: what they have in common; fill: parameters; sweep: the file."""

    row: str
    column: str
    words: list[str]  # that name the folder
    recipe: str
    fixed: Scalars
    fill: Scalars
    overrides: list[str]
    seeds: list[int]
    sweep: Path

    def trials(self, settings: Scalars) -> list[Trial]:
        """One for each seed; raise UsageError for a parameter that is none."""
        group = group_name(self.words, settings)
        recipe = _beside(self.sweep, filled(self.recipe, self.fill, self.sweep))
        found = []
        for seed in self.seeds:
            wanted = {**self.fixed, **settings, "train.seed": seed}
            values = {key: filled(value, self.fill, self.sweep) for key, value in wanted.items()}
            own = [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in values.items()]
            found.append(Trial(group, self.row, self.column, settings, seed, recipe, [*own, *self.overrides]))
        return found


PLACE = re.compile(r"(?<!\{)\{(an)?\}(?!\})")


def filled(value: Any, fill: Scalars, path: Path) -> Any:
    """Parameters put into texts, at any depth; raise UsageError for a name that is none.

    {} and {an} stay: they are the places of a class name in a prompt.
    """
    if isinstance(value, dict):
        return {key: filled(inner, fill, path) for key, inner in value.items()}
    if isinstance(value, list):
        return [filled(inner, fill, path) for inner in value]
    if not isinstance(value, str) or "{" not in value:
        return value
    if value[1:-1] in fill and value == f"{{{value[1:-1]}}}":
        return fill[value[1:-1]]  # alone, a number stays a number, and null is null
    value = PLACE.sub(r"{\g<0>}", value)
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


def group_name(words: list[str], settings: Scalars) -> str:
    """The name of a folder: its words, column and row, and what is tried, with the shortest ends of the keys that differ."""
    ends = [key.rpartition(".")[2] for key in settings]
    words = [*words]
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
