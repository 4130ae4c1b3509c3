"""The one reader of label tables (CSV): header, rows, cells. ISIC, APTOS and MedFM tables are settings of it."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from riftcli import files
from riftcli.data.sample_list import LabelRow
from riftcli.errors import DataError, Problems, did_you_mean
from riftcli.protocols import UNKNOWN, Task

MAX_CLASSES = 100_000
MOST = 2000 * files.MEGABYTE  # of a label file: CC3M's captions are 600
_INDEX = re.compile(r"[0-9]{1,9}(\.0+)?$")  # 2 and, after a round trip through a data frame, 2.0
_NUMBER = re.compile(r"[-+]?([0-9.]+([eE][-+]?[0-9]+)?|nan|inf(inity)?)$", re.IGNORECASE)

UNCERTAIN = {"zero": 0, "one": 1, "ignore": UNKNOWN}  # what a cell of -1 becomes

Cells = tuple[int, dict[str, str]]  # line number, column -> cell


@dataclass(frozen=True)
class LabelTable:
    """What the columns of a label table mean.

    image_column: file name or id; id_pattern: what an id must look like, with id_hint to say so. label_column: a class index
    or name; or label_columns: one 0/1 column per class (multi-label, or one-hot). classes: names in order.
    group_columns: kept as groups. unlabelled_ok: rows without a label are given as None instead of refused.
    uncertain: zero or one take the -1 of a 0/1 column as that, ignore as protocols.UNKNOWN; an empty cell, which CheXpert has for
    no mention, is then 0.
    """

    image_column: str
    label_column: str | None = None
    label_columns: list[str] = field(default_factory=list)
    label_separator: str | None = None
    task: Task = "multiclass"
    classes: list[str] = field(default_factory=list)
    group_columns: list[str] = field(default_factory=list)
    extra_columns: list[str] = field(default_factory=list)  # read, but neither label nor group (a split column)
    delimiter: str = ","
    id_pattern: str | None = None
    id_hint: str = ""
    unlabelled_ok: bool = False
    unlabelled_hint: str = "an unlabelled split?"
    uncertain: Literal["error", "zero", "one", "ignore"] = "error"  # what a cell of -1 becomes, and an empty one beside it

    def cells(self, path: Path, problems: Problems) -> list[Cells]:
        """The rows of a file, checked against its header; blank rows are skipped."""
        header, lines = read_csv(path, self.delimiter)
        self._check_header(path, header)
        rows = []
        for line, values in lines:
            if len(values) != len(header):
                problems.add(f"{path}:{line}: {len(values)} cells, the header has {len(header)}")
            else:
                rows.append((line, dict(zip(header, values, strict=True))))
        return rows

    def rows(self, path: Path, cells: list[Cells], problems: Problems) -> Iterator[LabelRow]:
        """Parsed rows; what is wrong with the others goes to `problems`."""
        for line, row in cells:
            try:
                name = self._id(row)
                target = self._target(row)
                blank = next((column for column in self.group_columns if not row[column].strip()), None)
                if blank:
                    raise ValueError(f"id '{name}': group column '{blank}' is empty; give unknown ones a value of their own")
            except ValueError as error:
                problems.add(f"{path}:{line}: {error}")
                continue
            yield LabelRow(path, line, name, target, {column: row[column].strip() for column in self.group_columns})

    def class_names(self, path: Path, targets: list) -> list[str]:
        """The names in order; counted from the targets where only indices are known."""
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

    def _check_header(self, path: Path, header: list[str]) -> None:
        wanted = [self.image_column, *self.label_columns, *self.group_columns, *self.extra_columns]
        wanted += [self.label_column] if self.label_column else []
        for column in wanted:
            if column not in header:
                others = [d for d in (";", "\t", ",") if d != self.delimiter and len(header) == 1 and d in header[0]]
                hint = f"; is data.delimiter {others[0]!r}?" if others else ""
                close = "" if others else did_you_mean(column, header)
                raise DataError(f"{path}:1: no column '{column}'{close}; it has: {_named(header)}{hint}")
            if header.count(column) > 1:
                raise DataError(f"{path}:1: column '{column}' stands twice in the header")

    def _id(self, row: dict[str, str]) -> str:
        name = row[self.image_column].strip()
        if not name:
            raise ValueError(f"column '{self.image_column}' is empty")
        if self.id_pattern and not re.fullmatch(self.id_pattern, name):
            raise ValueError(f"id '{name}' {self.id_hint}")
        return name

    def _target(self, row: dict[str, str]) -> int | tuple[int, ...] | None:
        columns = [self.label_column] if self.label_column else self.label_columns
        if self.unlabelled_ok and not any(row[column].strip() for column in columns):
            return None
        if self.label_column and self.label_separator:
            return self._tags(row[self.label_column])
        if self.label_column:
            return self._class_index(row[self.label_column].strip())
        flags = []
        for column in self.label_columns:
            cell = row[column].strip()
            if self.uncertain != "error" and cell in ("-1", "-1.0", ""):
                flags.append(UNCERTAIN[self.uncertain] if cell else 0)
                continue
            if cell in ("-1", "-1.0"):
                raise ValueError(
                    f"column '{column}' is -1, uncertain; say what that is to be with data.uncertain: zero, one or ignore"
                )
            if cell not in ("0", "1", "0.0", "1.0"):
                hint = f" ({self.unlabelled_hint})" if cell == "" else ""
                raise ValueError(f"column '{column}' must be 0 or 1, got '{cell}'{hint}")
            flags.append(int(cell[0]))
        if self.task == "multilabel":
            return tuple(flags)
        if sum(flags) != 1:
            raise ValueError(f"one-hot row with {sum(flags)} ones; exactly one class must be 1")
        return flags.index(1)

    def _tags(self, cell: str) -> tuple[int, ...]:
        """`a|c` as 0/1 per class; an empty cell is a row without any finding."""
        names = [name.strip() for name in cell.split(str(self.label_separator)) if name.strip()]
        for name in names:
            if name not in self.classes:
                self._unknown(name)
        return tuple(int(name in names) for name in self.classes)

    def _unknown(self, name: str) -> None:
        raise ValueError(f"unknown class '{name}'{did_you_mean(name, self.classes)}; data.classes has: {', '.join(self.classes)}")

    def _class_index(self, cell: str) -> int:
        if cell == "":
            raise ValueError(f"column '{self.label_column}' is empty ({self.unlabelled_hint})")
        if cell in self.classes:
            return self.classes.index(cell)
        named = any(_INDEX.match(name) for name in self.classes)  # numeric class names: a cell is a name, never an index
        if not _NUMBER.match(cell) or named:
            if self.classes:
                self._unknown(cell)
            raise ValueError(f"label '{cell}' is a name; list all names in order in data.classes")
        upper = len(self.classes) or MAX_CLASSES
        if not _INDEX.match(cell) or int(float(cell)) >= upper:
            bound = f"0..{upper - 1}" if self.classes else f"a whole number from 0 to {MAX_CLASSES - 1}"
            raise ValueError(f"label {cell} is out of range; expected {bound}")
        return int(float(cell))


def _named(columns: list[str]) -> str:
    """Some names of columns, no more of a file than tells what it is: it may be none of ours."""
    return ", ".join(name[:30] for name in columns[:12]) + ", ..." * (len(columns) > 12)


def read_text(path: Path) -> str:
    """A label file as text (a byte order mark is dropped); raise DataError when it is missing, empty or not text."""
    if not path.is_file():
        raise DataError(f"{path}: label file not found; set data.labels")
    try:
        text = files.read_text(path, MOST, "utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not a UTF-8 text file (byte {error.start}); export it again as UTF-8") from error
    except ValueError as error:
        raise DataError(f"{path}: {error}, which no table of labels is") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise DataError(f"{path}:{line}: NUL byte: a spreadsheet or a damaged file, not text; export it again as UTF-8")
    return text


def numbered_lines(path: Path) -> list[tuple[int, str]]:
    """[(number from 1, line)] without blank lines. Only a newline ends a line: a caption may hold U+2028."""
    lines = [line.rstrip("\r") for line in read_text(path).split("\n")]
    return [(number, line) for number, line in enumerate(lines, 1) if line.strip()]


def read_csv(path: Path, delimiter: str) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """(header, [(line, cells)]); rows of blank cells, the tail of many exports, are left out."""
    reader = csv.reader(io.StringIO(read_text(path), newline=""), delimiter=delimiter, strict=True)
    try:
        header: list[str] = []
        while not any(header):  # blank lines may come first
            row = next(reader, None)
            if row is None:
                raise DataError(f"{path}: empty file; expected a header line")
            header = [cell.strip() for cell in row]
        return header, [(reader.line_num, cells) for cells in reader if any(cell.strip() for cell in cells)]
    except csv.Error as error:
        raise DataError(f"{path}:{reader.line_num}: not a CSV line ({error})") from error


def first_existing(root: Path, names: list[str], what: str, remedy: str) -> Path:
    """The first of `names` below root that exists; raise DataError naming all that were tried."""
    for name in names:
        if (root / name).exists():
            return root / name
    raise DataError(f"{root}: no {what}; tried {', '.join(names)}; {remedy}")
