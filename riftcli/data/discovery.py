"""What is looked at and what was found: a table, words in names; the `data` section of a recipe, what a person should know."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from riftcli.data.folders import SPLITS
from riftcli.data.label_table import read_csv
from riftcli.errors import DataError

DELIMITERS = (",", ";", "\t", "|")
SAMPLE = 400  # rows that are looked at for what a column means
HELD = {"val": 0.1, "test": 0.2}  # shares that are cut where there is no such split


@dataclass(frozen=True)
class Question:
    """What looking cannot decide: which of several columns it is. `key` names it for messages."""

    key: str
    chosen: str
    others: tuple[str, ...]


@dataclass(frozen=True)
class Discovery:
    """fields: of the data source, without defaults; splits: `train`, `val` and `test` as a recipe says them; facts: one line
    each, what matters most first; groups: columns that keep samples together; questions: what was chosen among several.
    """

    format: str
    fields: dict[str, Any]
    splits: dict[str, Any]
    facts: list[str] = field(default_factory=list)
    groups: tuple[str, ...] = ()
    questions: tuple[Question, ...] = ()


def with_cuts(found: Discovery) -> Discovery:
    """The splits that are missing, cut from the training split; whole groups where there is a column to group by."""
    splits, train = dict(found.splits), found.splits["train"]
    whole = {"group": found.groups[0]} if found.groups else {}
    for key, share in HELD.items():
        if key not in splits:
            splits[key] = {"fraction": share, "from": train, **whole}
    return replace(found, splits={key: splits[key] for key in ("train", "val", "test")})


class NamesNoImages(DataError):
    """A table without a column that names images."""


@dataclass(frozen=True)
class Table:
    """One table: its file, delimiter, columns and rows."""

    path: Path
    delimiter: str
    header: list[str]
    rows: list[dict[str, str]]

    @classmethod
    def read(cls, path: Path) -> Table:
        """Read a table with the delimiter that its first line has most of; raise DataError."""
        with path.open(encoding="utf-8-sig", errors="replace") as file:
            first = next((line for line in file if line.strip()), "")
        delimiter = max(DELIMITERS, key=first.count)
        header, lines = read_csv(path, delimiter)
        rows = [[cell.strip() for cell in cells] for _, cells in lines if len(cells) == len(header)]
        return cls(path, delimiter, header, [dict(zip(header, row, strict=True)) for row in rows])

    def sample(self, column: str) -> list[str]:
        """Some cells of a column that are not empty, evenly spaced."""
        step = max(1, len(self.rows) // SAMPLE)
        return [row[column] for row in self.rows[::step] if row[column]]


def words_of(column: str) -> list[str]:
    """`PatientID`, `patient_id`, `Patient ID` -> patient, id."""
    return [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+", column)]


def split_words(name: str) -> set[str]:
    """Which of train, val and test a name has among its words."""
    words = set(re.split(r"[^a-z]+", name.lower()))
    return {key for key, names in SPLITS.items() if words & set(names)}
