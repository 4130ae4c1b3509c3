"""Data sources of a recipe, bound to the splits that it asks for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from riftcli.recipe.sections import PromptsSection


@dataclass(frozen=True)
class SplitSpec:
    """One split as a recipe asks for it: a split of the source, or a part cut from another one.

    name: split of the data source, e.g. `train`, or several joined by `+`; limit: keep that many samples, drawn with
    `seed`, classes in proportion; fraction: hold that share out of `name`, or folds and fold (validation only): the
    fold-th of so many parts (from 0); `group` keeps e.g. a patient whole.
    """

    name: str
    limit: int | None = None
    fraction: float | None = None
    folds: int | None = None
    fold: int = 0
    group: str | None = None
    seed: int = 0

    @property
    def held_out(self) -> bool:
        """True when this split is cut from the training split."""
        return self.fraction is not None or self.folds is not None


@dataclass(frozen=True)
class SplitRules:
    """What may hold between the splits of one recipe beyond the strict default.

    allow_overlap: samples in two splits are counted in the report instead of refused; allow_missing_classes: a split
    that is not trained on may lack classes.
    """

    allow_overlap: bool = False
    allow_missing_classes: bool = False


@dataclass(frozen=True)
class DataSection:
    """A data source bound to its splits."""

    format: str
    source: Any  # data.split.DataSource
    train: SplitSpec
    val: SplitSpec | None
    test: SplitSpec | None  # None: there is none, and what validation says is the result
    rules: SplitRules = SplitRules()

    @property
    def name(self) -> str:
        """Short name for folders and reports."""
        return source_name(self.source, self.format)

    @property
    def held_groups(self) -> list[str]:
        """Columns that the recipe says no two splits may share, e.g. patient."""
        specs = [spec for spec in (self.val, self.test) if spec is not None and spec.group is not None]
        return list(dict.fromkeys(str(spec.group) for spec in specs))


@dataclass(frozen=True)
class ReferenceSection:
    """A second set of images, whose labels are not used: what a regularizer with `on: reference` looks at.

    batch_size: global; null takes train.batch_size.
    """

    format: str
    source: Any  # data.split.DataSource
    split: SplitSpec
    batch_size: int | None = None

    @property
    def name(self) -> str:
        """Short name for messages."""
        return source_name(self.source, self.format)


@dataclass(frozen=True)
class EvalSet:
    """A set of images that a run is measured on beside its own test split: other classes, or the same under other conditions.

    metric: of the catalog; prompts: of this set, None takes those of the recipe; title: for tables, None takes the source's name.
    """

    format: str
    source: Any  # data.split.DataSource
    split: SplitSpec
    metric: str = "acc"
    prompts: PromptsSection | None = None
    title: str | None = None

    @property
    def name(self) -> str:
        """For tables."""
        return self.title or source_name(self.source, self.format)


def source_name(source: Any, kind: str) -> str:
    """Its own name, else that of its folder, else its format's."""
    root = getattr(source, "root", None)
    return getattr(source, "name", None) or (Path(root).resolve().name if root else "") or kind
