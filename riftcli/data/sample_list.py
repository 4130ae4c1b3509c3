"""From rows of a label file to a split: images found, duplicates judged, every problem with its file, line and id."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from riftcli.data.images import EXTENSIONS, FileReader
from riftcli.data.split import Split
from riftcli.errors import DataError, Problems
from riftcli.protocols import Task

OnDuplicate = Literal["error", "first", "keep"]


@dataclass(frozen=True)
class LabelRow:
    """One line of a label file. target: class index, 0/1 per class, or None where the file leaves it empty."""

    file: Path
    line: int
    id: str
    target: int | tuple[int, ...] | None
    groups: dict[str, str] = field(default_factory=dict)

    @property
    def where(self) -> str:
        """file:line, for messages."""
        return f"{self.file}:{self.line}"


class ImageFinder:
    """Finds the image of an id in folders that are searched in order; says what is there instead when it is not.

    folders: None for ids that are absolute paths, anywhere; absolute_remedy: for messages, where that could be asked for.
    """

    def __init__(self, folders: list[Path] | None, suffix: str = "", absolute_remedy: str = "") -> None:
        self.anywhere, self.folders, self.suffix, self.absolute_remedy = folders is None, folders or [], suffix, absolute_remedy
        self._names: dict[str, Path] | None = None  # lower-case stem -> a file, listed once something is missing

    def find(self, name: str) -> Path:
        """The path; raise ValueError with what is wrong."""
        has_suffix = self.suffix and name.lower().endswith(self.suffix.lower())
        file = Path(name if has_suffix else name + self.suffix)
        if self.anywhere:
            if not file.is_absolute():
                raise ValueError(f"image '{name}' is no absolute path; name the folders in data.images instead of `absolute`")
            if not os.path.isfile(file):  # False for a text that is no file name
                raise ValueError(f"image '{name[:200]}' not found")
            return file
        if file.is_absolute() or ".." in file.parts:
            remedy = self.absolute_remedy if file.is_absolute() else ""
            raise ValueError(f"image '{name}' points outside the image folders{remedy}")
        try:
            for folder in self.folders:
                if (folder / file).is_file():
                    return folder / file
        except OSError as error:
            raise ValueError(f"'{name[:60]}...' is no file name ({error.strerror}); is this the image column?") from None
        raise ValueError(f"image '{file}' not found in {', '.join(map(str, self.folders))}{self._hint(file)}")

    def _hint(self, file: Path) -> str:
        for folder in self.folders:
            doubled = folder / folder.name
            if (doubled / file).is_file():
                return f"; it lies in {doubled}: move the images up one folder, or point data.images there"
        if self._names is None:
            self._names = {}
            for folder in self.folders:
                if folder.is_dir():
                    entries = (entry for entry in folder.iterdir() if entry.suffix.lower() in EXTENSIONS)
                    self._names |= {_stem(entry.name): entry for entry in entries}
        other = self._names.get(_stem(file.name))
        return f"; there is {other.name}" if other else ""


def _stem(name: str) -> str:
    """Lower-case name without an image extension; a DICOM name with dots keeps all of them."""
    name = name.lower()
    return next((name.removesuffix(extension) for extension in EXTENSIONS if name.endswith(extension)), name)


class SampleList:
    """Collects rows of one split, and everything wrong with them."""

    def __init__(self, finder: ImageFinder, on_duplicate: OnDuplicate | None, problems: Problems) -> None:
        self.finder, self.on_duplicate, self.problems = finder, on_duplicate, problems
        self.rows: list[LabelRow] = []
        self.paths: list[Path] = []
        self._first: dict[str, LabelRow] = {}
        self._copies: dict[str, int] = {}

    def extend(self, rows: Iterable[LabelRow]) -> None:
        """Add rows in order."""
        for row in rows:
            first = self._first.get(row.id)
            if first is not None and not self._keep(first, row):
                continue
            try:
                path = self.finder.find(row.id)
            except ValueError as error:
                self.problems.add(f"{row.where}: {error}")
                continue
            self._first.setdefault(row.id, row)
            self.rows.append(row)
            self.paths.append(path)

    def _keep(self, first: LabelRow, row: LabelRow) -> bool:
        """Judge a repeated id."""
        seen = f"first on line {first.line}" if first.file == row.file else f"first in {first.where}"
        if first.target != row.target:
            self.problems.add(
                f"{row.where}: id '{row.id}' is listed twice with different labels ({seen}); keep the right line only"
            )
        elif self.on_duplicate in ("error", None):
            remedy = ", or --set data.on_duplicate=first" if self.on_duplicate else ""  # None: the format has no such key
            self.problems.add(f"{row.where}: id '{row.id}' is listed twice ({seen}); remove one{remedy}")
        return self.on_duplicate == "keep" and first.target == row.target

    def split(self, name: str, classes: list[str], task: Task, source: str) -> Split:
        """Everything that was collected; raise DataError with every problem, or when there are no rows."""
        import numpy as np

        self.problems.raise_if_any()
        if not self.rows:
            raise DataError(f"{source}: no rows for split '{name}'")
        targets: list[Any] = [row.target for row in self.rows]
        columns = list(self.rows[0].groups)
        return Split(
            name=name,
            ids=self._unique_ids(),
            targets=np.asarray(targets, dtype="uint8" if task == "multilabel" else "int64"),
            classes=classes,
            read=FileReader(self.paths),
            task=task,
            groups={column: [row.groups[column] for row in self.rows] for column in columns},
            paths=self.paths,
        )

    def _unique_ids(self) -> list[str]:
        """A kept duplicate gets its own id, so that a position can be found by it."""
        ids = []
        for row in self.rows:
            count = self._copies[row.id] = self._copies.get(row.id, 0) + 1
            ids.append(row.id if count == 1 else f"{row.id}#{count}")
        return ids
