"""A table of image names and labels, in one file or one per split."""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NoReturn

from riftcli.errors import DataError, nearest
from riftcli.images import FileReader, check_split, existing_root
from riftcli.protocols import Split

MAX_CLASSES = 100_000
_INDEX = re.compile(r"[0-9]{1,9}(\.0+)?$")  # 2 and, after a round trip through a data frame, 2.0


@dataclass(frozen=True)
class CsvTable:
    """Labels in CSV, images in one or more folders.

    root: data folder; labels: {split: file} below it, or one file for all with `split_column`.
    images: folders below root that are searched in order; image_column: file name or id; image_suffix: added to ids, e.g. .jpg.
    label_column: a class index or name; label_columns: one 0/1 column per class (task multilabel, or one-hot multiclass).
    classes: class names in order; needed where label_column holds names, never guessed from one split.
    group_columns: columns kept for `val.group`, e.g. [patient]. delimiter: one character.
    """

    root: str
    labels: dict[str, str] | str
    images: list[str] = field(default_factory=lambda: ["."])
    image_column: str = "image"
    image_suffix: str = ""
    label_column: str | None = None
    label_columns: list[str] = field(default_factory=list)
    task: Literal["multiclass", "multilabel"] = "multiclass"
    classes: list[str] = field(default_factory=list)
    split_column: str | None = None
    group_columns: list[str] = field(default_factory=list)
    delimiter: str = ","

    def __post_init__(self) -> None:
        if bool(self.label_column) == bool(self.label_columns):
            raise ValueError("label_column: give either label_column or label_columns")
        if self.task == "multilabel" and not self.label_columns:
            raise ValueError("label_columns: task multilabel needs one 0/1 column per class")
        if isinstance(self.labels, str) and not self.split_column:
            raise ValueError("split_column: needed when one labels file holds all splits")
        if len(set(self.classes)) != len(self.classes):
            raise ValueError("classes: a name stands twice")
        if len(self.delimiter) != 1:
            raise ValueError("delimiter: must be one character")

    def load(self, split: str) -> Split:
        """Parse and check every row of one split; no image is decoded, but each must exist."""
        import numpy as np

        root = existing_root(self.root)
        path, rows = self._rows(root, split)
        folders = [root / folder for folder in self.images]
        ids, paths, targets = [], [], []
        seen: dict[str, int] = {}
        groups: dict[str, list[str]] = {column: [] for column in self.group_columns}
        for line, row in rows:
            name = row[self.image_column].strip()
            if not name:
                _fail(path, line, f"column '{self.image_column}' is empty")
            if name in seen:
                _fail(path, line, f"id '{name}' is listed twice (first on line {seen[name]}); remove one")
            seen[name] = line
            targets.append(self._target(path, line, row))
            paths.append(self._image(path, line, name, folders))
            ids.append(name)
            for column in self.group_columns:
                groups[column].append(row[column])
        if not ids:
            raise DataError(f"{path}: no rows for split '{split}'")
        return Split(
            name=split,
            ids=ids,
            targets=np.asarray(targets, dtype="uint8" if self.task == "multilabel" else "int64"),
            classes=self._class_names(path, targets),
            read=FileReader(paths),
            task=self.task,
            groups=groups,
        )

    def _rows(self, root: Path, split: str) -> tuple[Path, list[tuple[int, dict[str, str]]]]:
        if isinstance(self.labels, dict):
            check_split(f"csv_table {self.root}", split, list(self.labels))
        path = root / (self.labels if isinstance(self.labels, str) else self.labels[split])
        if not path.is_file():
            raise DataError(f"{path}: label file not found; set data.labels")
        try:
            with path.open(newline="", encoding="utf-8-sig") as file:
                reader = csv.reader(file, delimiter=self.delimiter)
                header = next(reader, [])
                self._check_header(path, header)
                rows = []
                for cells in reader:
                    if not any(cell.strip() for cell in cells):
                        continue  # blank rows at the end of an export
                    if len(cells) != len(header):
                        _fail(path, reader.line_num, f"{len(cells)} cells, the header has {len(header)}")
                    rows.append((reader.line_num, dict(zip(header, cells, strict=True))))
        except (UnicodeDecodeError, csv.Error) as error:
            raise DataError(f"{path}: not a UTF-8 CSV file ({error})") from error
        if self.split_column:
            valid = list(dict.fromkeys(row[self.split_column] for _, row in rows))
            check_split(f"{path}, column '{self.split_column}'", split, valid)
            rows = [(line, row) for line, row in rows if row[self.split_column] == split]
        return path, rows

    def _check_header(self, path: Path, header: list[str]) -> None:
        if not header:
            raise DataError(f"{path}: empty file; expected a header line")
        wanted = [self.image_column, *self.label_columns, *self.group_columns]
        wanted += [column for column in (self.label_column, self.split_column) if column]
        for column in wanted:
            if column not in header:
                one_cell = len(header) == 1 and ";" in header[0]
                hint = "; is data.delimiter ';'?" if one_cell else ""
                close = "" if one_cell else nearest(column, header)
                raise DataError(f"{path}:1: no column '{column}'{close}; it has: {', '.join(header)}{hint}")
            if header.count(column) > 1:
                raise DataError(f"{path}:1: column '{column}' stands twice in the header")

    def _target(self, path: Path, line: int, row: dict[str, str]) -> int | list[int]:
        if self.label_column:
            return self._class_index(path, line, row[self.label_column].strip())
        flags = []
        for column in self.label_columns:
            cell = row[column].strip()
            if cell not in ("0", "1", "0.0", "1.0"):
                hint = " (an unlabelled split?)" if cell == "" else ""
                _fail(path, line, f"column '{column}' must be 0 or 1, got '{cell}'{hint}")
            flags.append(int(cell[0]))
        if self.task == "multilabel":
            return flags
        if sum(flags) != 1:
            _fail(path, line, f"one-hot row with {sum(flags)} ones; exactly one class must be 1")
        return flags.index(1)

    def _class_index(self, path: Path, line: int, cell: str) -> int:
        if cell == "":
            _fail(path, line, f"column '{self.label_column}' is empty (an unlabelled split?)")
        if cell in self.classes:
            return self.classes.index(cell)
        named = any(_INDEX.match(name) for name in self.classes)  # numeric class names: a cell is a name, never an index
        if not re.match(r"[-+]?[0-9.]+([eE][-+]?[0-9]+)?$|nan$", cell) or named:
            if self.classes:
                close = nearest(cell, self.classes)
                _fail(path, line, f"unknown class '{cell}'{close}; data.classes has: {', '.join(self.classes)}")
            _fail(path, line, f"label '{cell}' is a name; list all names in order in data.classes")
        upper = len(self.classes) or MAX_CLASSES
        if not _INDEX.match(cell) or int(float(cell)) >= upper:
            bound = f"0..{upper - 1}" if self.classes else f"a whole number from 0 to {MAX_CLASSES - 1}"
            _fail(path, line, f"label {cell} is out of range; expected {bound}")
        return int(float(cell))

    def _image(self, path: Path, line: int, name: str, folders: list[Path]) -> Path:
        relative = Path(name + self.image_suffix)
        if relative.is_absolute() or ".." in relative.parts:
            _fail(path, line, f"image '{name}' points outside the image folders")
        for folder in folders:
            if (folder / relative).is_file():
                return folder / relative
        return _fail(path, line, f"image '{relative}' not found in {', '.join(map(str, folders))}")

    def _class_names(self, path: Path, targets: list) -> list[str]:
        if self.label_columns:
            if self.classes and len(self.classes) != len(self.label_columns):
                raise DataError(
                    f"data.classes: {len(self.classes)} names for {len(self.label_columns)} label_columns; "
                    "give one name per column, or leave classes out"
                )
            return self.classes or self.label_columns
        if self.classes:
            return self.classes
        absent = sorted(set(range(max(targets) + 1)) - set(targets))
        if absent:
            raise DataError(
                f"{path}: labels go up to {max(targets)} but {absent[:5]} never occur; list all names in order in data.classes"
            )
        return [str(i) for i in range(max(targets) + 1)]


def _fail(path: Path, line: int, what: str) -> NoReturn:
    raise DataError(f"{path}:{line}: {what}")
