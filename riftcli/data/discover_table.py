"""What the columns of a label table mean, guessed from its values and from the images beside it."""

from __future__ import annotations

import os
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from riftcli.data.discovery import SPLITS, Discovery, Question
from riftcli.data.images import EXTENSIONS
from riftcli.data.label_table import read_csv
from riftcli.errors import DataError

TABLES = (".csv", ".tsv", ".txt")
DELIMITERS = (",", ";", "\t", "|")
LABEL_NAMES = (
    "label", "labels", "class", "classes", "category", "target", "diagnosis", "dx", "finding", "findings", "y", "level", "grade",
    "species", "breed",
)  # fmt: skip
GROUP = re.compile(r"(patient|subject|person|participant|animal|lesion|slide|case|study|eye|specimen)", re.IGNORECASE)
SPLIT_VALUES = {"train", "training", "val", "valid", "validation", "dev", "test", "testing"}
SAMPLE = 400  # rows that are looked at
MOST_FILES = 300_000  # below the root, when names are sought
FLAGS = {"0", "1", "0.0", "1.0"}
UNCERTAIN = {"-1", "-1.0", ""}


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
            first = file.readline()
        delimiter = max(DELIMITERS, key=first.count)
        header, lines = read_csv(path, delimiter)
        rows = [[cell.strip() for cell in cells] for _, cells in lines if len(cells) == len(header)]
        return cls(path, delimiter, header, [dict(zip(header, row, strict=True)) for row in rows])

    def values(self, column: str) -> list[str]:
        """A sample of the cells of a column, evenly spaced; empty ones too."""
        step = max(1, len(self.rows) // SAMPLE)
        return [row[column] for row in self.rows[::step]]


def tables_in(folder: Path) -> list[Path]:
    """Tables right in a folder, without those of predictions to be handed in."""
    found = sorted(p for p in folder.iterdir() if p.suffix.lower() in TABLES and p.is_file() and not p.name.startswith("."))
    return [p for p in found if p.suffix.lower() != ".txt" and "submission" not in p.name.lower()]


def infer_table(root: Path, paths: list[Path], answers: dict[str, str]) -> Discovery:
    """The `csv_table` section for these tables; raise DataError where no column names images or none holds labels."""
    facts: list[str] = []
    questions: list[Question] = []
    tables = _by_split([Table.read(path) for path in paths], facts)
    first = tables.get("train") or next(iter(tables.values()))
    if not first.rows:
        raise DataError(f"{first.path}: no rows below the header")
    index = _files_below(root)
    fields: dict[str, Any] = {"root": str(root)}
    image_column, place = _image_column(first, root, index, facts)
    fields |= place
    split_column = _split_column(first, image_column) if len(tables) == 1 else None
    groups = _group_columns(first, {image_column, split_column})
    taken = {image_column, split_column, *groups}
    labels, found = _labels(first, taken, answers)
    fields |= labels
    questions += found
    tables = {key: table for key, table in tables.items() if table is first or _labelled(table, labels)}
    splits = _splits(tables, split_column, root, fields)
    if first.delimiter != ",":
        fields["delimiter"] = first.delimiter
    if groups:
        fields["group_columns"] = groups
    one = labels.get("label_column")
    what = f"label_column {one}" if one else f"{len(labels['label_columns'])} label columns"
    facts.insert(0, f"table {first.path.name}: {len(first.rows)} rows; image_column {image_column}, {what}")
    if "uncertain" in labels:
        facts.append("cells of -1 (uncertain) are taken as 0: set data.uncertain to one for the other reading")
    if split_column:
        facts.append(f"splits by column {split_column}: {', '.join(splits.values())}")
    if groups:
        facts.append(f"{groups[0]} is kept whole: no one of them is in two splits")
    return Discovery("csv_table", fields, splits, facts, tuple(groups[:1]), tuple(questions))


def _by_split(tables: list[Table], facts: list[str]) -> dict[str, Table]:
    """`train`, `val`, `test` -> table, by their names; a single one is `all`."""
    if len(tables) == 1:
        return {"all": tables[0]}
    named: dict[str, Table] = {}
    for table in tables:
        words = re.split(r"[^a-z]+", table.path.stem.lower())
        key = next((key for key, names in SPLITS.items() if set(words) & set(names)), None)
        if key and key not in named:
            named[key] = table
    if "train" not in named:
        if len(tables) > 1 and not named:
            raise DataError(
                f"{tables[0].path.parent}: several tables ({', '.join(t.path.name for t in tables)}), and none is called train; "
                "name the one with the labels: rift init FILE"
            )
        raise DataError(f"{tables[0].path.parent}: tables for {', '.join(named)} but none to train on")
    left = [table.path.name for table in tables if table not in named.values()]
    if left:
        facts.append(f"tables that are not read: {', '.join(left)}")
    return named if len(named) > 1 else {"all": named["train"]}


def _files_below(root: Path) -> dict[str, list[str]]:
    """File name in lower case, with and without its suffix -> folders below root that have one; images only."""
    found: dict[str, list[str]] = {}
    count = 0
    for folder, inner, names in os.walk(root):
        inner[:] = sorted(name for name in inner if not name.startswith(".") and name != "__MACOSX")
        place = os.path.relpath(folder, root)
        for name in names:
            stem, suffix = os.path.splitext(name)
            if suffix.lower() in EXTENSIONS:
                count += 1
                for key in {name.lower(), stem.lower()}:
                    found.setdefault(key, []).append(place)
        if count > MOST_FILES:
            break
    return found


def _image_column(table: Table, root: Path, index: dict[str, list[str]], facts: list[str]) -> tuple[str, dict[str, Any]]:
    """(the column whose cells name most images, the fields that say where these lie)."""
    best: tuple[float, str, str] = (0.0, "", "")
    for column in table.header:
        cells = [cell for cell in table.values(column) if cell]
        if len(set(cells)) < max(2, 0.5 * len(cells)):
            continue
        ways = {
            "absolute": sum(cell.startswith("/") and Path(cell).is_file() for cell in cells),
            "path": sum("/" in cell and (root / cell).is_file() for cell in cells),
            "name": sum(os.path.splitext(cell)[1].lower() in EXTENSIONS and cell.lower() in index for cell in cells),
            "stem": sum(os.path.splitext(cell)[1].lower() not in EXTENSIONS and cell.lower() in index for cell in cells),
        }
        way = max(ways, key=ways.__getitem__)
        share = ways[way] / max(1, len(cells))
        if share > best[0]:
            best = (share, column, way)
    share, column, way = best
    if share < 0.5:
        example = table.rows[0]
        raise DataError(
            f"{table.path}: no column names images below {root} (looked for {', '.join(EXTENSIONS[:3])}, ...); its first row is "
            f"{', '.join(f'{key}={value[:30]}' for key, value in list(example.items())[:6])}; give the folder that holds both"
        )
    cells = [cell for cell in table.values(column) if cell]
    if share < 1:
        facts.append(f"about {100 * (1 - share):.0f} % of the rows name an image that is not there")
    fields: dict[str, Any] = {} if column == "image" else {"image_column": column}
    if way == "absolute":
        return column, {**fields, "images": "absolute"}
    if way == "path":
        return column, fields
    folders = Counter(place for cell in cells for place in index.get(cell.lower(), []))
    wanted = [place for place, _ in folders.most_common()]
    if wanted != ["."]:
        fields["images"] = wanted
    if way == "stem":
        fields["image_suffix"] = _suffix(root, wanted, cells)
    return column, fields


def _suffix(root: Path, folders: list[str], cells: list[str]) -> str:
    """The suffix that most of the ids lack."""
    counts: Counter[str] = Counter()
    for cell in cells[:50]:
        for folder in folders:
            for suffix in (*EXTENSIONS, *(s.upper() for s in EXTENSIONS)):
                if (root / folder / f"{cell}{suffix}").is_file():
                    counts[suffix] += 1
    return counts.most_common(1)[0][0]


def _split_column(table: Table, image_column: str) -> str | None:
    for column in table.header:
        cells = {row[column].lower() for row in table.rows}
        if column != image_column and len(cells) > 1 and cells <= SPLIT_VALUES and cells & {"train", "training"}:
            return column
    return None


def _group_columns(table: Table, taken: set[str | None]) -> list[str]:
    """Columns that name whose image it is, those with fewest values first: a patient has several lesions."""
    found = []
    for column in table.header:
        cells = [row[column] for row in table.rows]
        count = len(set(cells))
        if column not in taken and GROUP.search(column) and all(cells) and 5 <= count < len(cells):
            found.append((count, column))
    return [column for _, column in sorted(found)]


def _labels(table: Table, taken: set[str | None], answers: dict[str, str]) -> tuple[dict[str, Any], list[Question]]:
    """(the fields about labels, what was chosen among several)."""
    free = [column for column in table.header if column not in taken]
    named = answers.get("label_column")
    flags = [column for column in free if {row[column] for row in table.rows} <= FLAGS | UNCERTAIN]
    if len(flags) > 1 and named is None and any({row[column] for row in table.rows} & UNCERTAIN for column in flags):
        return {"label_columns": flags, "task": "multilabel", "uncertain": "zero"}, []
    if len(flags) > 1 and named is None:
        sums = {sum(float(row[column]) for column in flags) for row in table.rows}
        return {"label_columns": flags, **({} if sums == {1.0} else {"task": "multilabel"})}, []
    candidates = {}
    for column in free:
        cells = [row[column] for row in table.rows]
        count = len(set(cells))
        if all(cells) and 2 <= count <= max(2, min(1000, len(cells) // 2)) and not _measured(cells):
            place = LABEL_NAMES.index(column.lower()) if column.lower() in LABEL_NAMES else len(LABEL_NAMES)
            candidates[column] = (place, count)
    if named is not None and named not in table.header:
        raise DataError(f"{table.path}: no column '{named}'; it has: {', '.join(table.header)}")
    if not candidates and named is None:
        raise DataError(
            f"{table.path}: no column looks like a label (a few values that come again and again); columns: {', '.join(free)}; "
            "name it with --label COLUMN"
        )
    order = sorted(candidates, key=lambda column: candidates[column])
    chosen = named or order[0]
    questions = [Question("label_column", chosen, tuple(order[1:]))] if named is None and len(order) > 1 else []
    cells = [row[chosen] for row in table.rows]
    separator = next((mark for mark in "|;" if sum(mark in cell for cell in cells) > 0.02 * len(cells)), None)
    if separator:
        names = sorted({part.strip() for cell in cells for part in cell.split(separator) if part.strip()})
        return {"label_column": chosen, "label_separator": separator, "task": "multilabel", "classes": names}, questions
    return {"label_column": chosen, "classes": sorted(set(cells), key=_natural)}, questions


def _measured(cells: list[str]) -> bool:
    """True for numbers with decimals: an age or a size, not a class."""
    return any(re.fullmatch(r"-?[0-9]+\.[0-9]*[1-9][0-9]*", cell) for cell in cells)


def _natural(text: str) -> tuple[Any, ...]:
    return tuple(int(part) if part.isdigit() else part for part in re.split(r"([0-9]+)", text))


def _labelled(table: Table, labels: dict[str, Any]) -> bool:
    columns = labels.get("label_columns") or [labels["label_column"]]
    return set(columns) <= set(table.header)


def _splits(tables: dict[str, Table], split_column: str | None, root: Path, fields: dict[str, Any]) -> dict[str, Any]:
    """`train`, ... as a recipe says them; also sets `labels` and `split_column`."""

    def place(table: Table) -> str:
        return str(table.path.relative_to(root))

    if split_column is None:
        fields["labels"] = {key: place(table) for key, table in tables.items()}
        return {"train": "all"} if list(tables) == ["all"] else {key: key for key in tables}
    table = tables["all"]
    fields |= {"labels": place(table), "split_column": split_column}
    values = dict.fromkeys(row[split_column] for row in table.rows)
    return {key: value for value in values for key, names in SPLITS.items() if value.lower() in names}
