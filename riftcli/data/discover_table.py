"""What the columns of a label table mean, guessed from its values and from the images beside it."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from riftcli.data.discover_images import files_below, image_column, places_of
from riftcli.data.discovery import Discovery, NamesNoImages, Question, Table, split_words, words_of
from riftcli.data.folders import SPLITS, split_of
from riftcli.errors import DataError

TABLES = (".csv", ".tsv")
LABEL_NAMES = (
    "label", "labels", "class", "classes", "category", "target", "diagnosis", "dx", "finding", "findings", "y", "level", "grade",
    "species", "breed",
)  # fmt: skip
GROUP_NAMES = {"patient", "subject", "person", "participant", "animal", "lesion", "slide", "case", "study", "eye", "specimen"}
OF_IDS = {"id", "ids", "no", "nr", "number", "code", "key", "uid", "instance", "anonymized", "anonymised", "pseudo", "unique"}
SPLIT_NAMES = {"split", "fold", "partition", "subset", "phase"}
SPLIT_VALUES = {name for names in SPLITS.values() for name in names}
FLAGS = {"0", "1", "0.0", "1.0"}
UNCERTAIN = {"-1", "-1.0", ""}


def tables_in(folder: Path) -> list[Path]:
    """Tables right in a folder, without those of predictions to be handed in."""
    found = sorted(p for p in folder.iterdir() if p.suffix.lower() in TABLES and p.is_file() and not p.name.startswith("."))
    return [p for p in found if "submission" not in p.name.lower()]


def infer_table(root: Path, paths: list[Path], answers: dict[str, str]) -> Discovery:
    """The `csv_table` section for these tables.

    Raises NamesNoImages where no column names images, and DataError where none holds labels.
    """
    facts: list[str] = []
    tables = _by_split([_read(path) for path in paths], facts)
    first = tables.get("train") or next(iter(tables.values()))
    if not first.rows:
        raise NamesNoImages(f"{first.path}: no rows below the header")
    named = answers.get("label_column")
    if named is not None and named not in first.header:
        raise DataError(f"{first.path}: no column '{named}'; it has: {', '.join(first.header)}")
    index = files_below(root)
    images = image_column(first, root, index)
    split_column = _split_column(first, {images.column, named}) if len(tables) == 1 else None
    _note_splits_by_number(first, split_column, facts)
    groups = _group_columns(first, {images.column, split_column, named}, facts)
    labels, questions = _labels(first, {images.column, split_column, *groups} - {named}, named, facts)
    tables = _complete(tables, {images.column, *(labels.get("label_columns") or [labels["label_column"]])}, facts)
    lacking = [column for column in groups if any(column not in table.header for table in tables.values())]
    if lacking:
        facts.insert(0, f"not kept whole by {lacking[0]}: not every table has it")
        groups = [column for column in groups if column not in lacking]
    fields: dict[str, Any] = {"root": str(images.root)}
    fields |= places_of(images, {key: [row[images.column] for row in table.rows] for key, table in tables.items()}, index, facts)
    fields |= labels
    if not groups and any(re.search(r"patient[ _-]?[0-9]", cell, re.IGNORECASE) for cell in first.sample(images.column)):
        facts.insert(
            0, "paths name patients and no column does: they will be in several splits; add a column, and set group_columns"
        )
    splits = _splits(tables, split_column, images.root, fields)
    if first.delimiter != ",":
        fields["delimiter"] = first.delimiter
    if groups:
        fields["group_columns"] = groups
        facts.insert(0, f"{groups[0]} is kept whole: no one of them is in two splits")
    if questions:
        facts.insert(0, f"could also be the label: {', '.join(questions[0].others[:5])} (rift init --label COLUMN)")
    one = labels.get("label_column")
    what = f"label_column {one}" if one else f"{len(labels['label_columns'])} label columns"
    whole = f"table {first.path.name}: {len(first.rows)} rows; image_column {images.column}, {what}"
    by = [f"splits by column {split_column}: {', '.join(splits.values())}"] if split_column else []
    return Discovery("csv_table", fields, splits, [whole, *by, *facts], tuple(groups[:1]), tuple(questions))


def _read(path: Path) -> Table:
    try:
        return Table.read(path)
    except DataError as error:
        raise NamesNoImages(str(error)) from error


def _complete(tables: dict[str, Table], columns: set[str], facts: list[str]) -> dict[str, Table]:
    """Those that have these columns; of others it is said what they lack."""
    kept = {}
    for key, table in tables.items():
        lacking = sorted(columns - set(table.header))
        if lacking:
            facts.insert(0, f"{table.path.name} is not read: it has no column {lacking[0]}")
        else:
            kept[key] = table
    return kept


def _by_split(tables: list[Table], facts: list[str]) -> dict[str, Table]:
    """`train`, `val`, `test` -> table, by their names; a single one is `all`."""
    if len(tables) == 1:
        return {"all": tables[0]}
    named: dict[str, Table] = {}
    for table in tables:
        key = next((key for key in SPLITS if key in split_words(table.path.stem)), None)
        if key and key not in named:
            named[key] = table
    if "train" not in named:
        if len(tables) > 1 and not named:
            raise NamesNoImages(
                f"{tables[0].path.parent}: several tables ({', '.join(t.path.name for t in tables)}), and none is called train; "
                "name the one with the labels: rift init FILE"
            )
        raise DataError(f"{tables[0].path.parent}: tables for {', '.join(named)} but none to train on")
    left = [table.path.name for table in tables if table not in named.values()]
    if left:
        facts.append(f"tables that are not read: {', '.join(left)}")
    ordered = {key: named[key] for key in SPLITS if key in named}
    return ordered if len(ordered) > 1 else {"all": named["train"]}


def _split_column(table: Table, taken: set[str | None]) -> str | None:
    for column in table.header:
        cells = {row[column].lower() for row in table.rows}
        if column not in taken and len(cells) > 1 and cells <= SPLIT_VALUES | {""} and cells & {"train", "training"}:
            return column
    return None


def _note_splits_by_number(table: Table, split_column: str | None, facts: list[str]) -> None:
    """Say of a column that is called a split and has numbers, that it is not used; and of rows without a split."""
    for column in table.header:
        if column != split_column and set(words_of(column)) & SPLIT_NAMES:
            facts.insert(0, f"column {column} is not used: a split column says train, val and test in words")
    blank = 0 if split_column is None else sum(not row[split_column] for row in table.rows)
    if blank:
        facts.insert(0, f"{blank} rows without a {split_column} are in no split")


def _group_columns(table: Table, taken: set[str | None], facts: list[str]) -> list[str]:
    """Columns that name whose image it is, those with fewest values first: a patient has several lesions."""
    found = []
    for column in table.header:
        words = words_of(column)
        if column in taken or not set(words) & GROUP_NAMES or not set(words) <= GROUP_NAMES | OF_IDS:
            continue  # `Patient Age` names no patient
        cells = [row[column] for row in table.rows]
        if set(words) <= GROUP_NAMES and sum(any(c.isdigit() for c in cell) for cell in set(cells)) < 0.5 * len(set(cells)):
            continue  # `lesion` with the names of diseases
        count, blank = len(set(cells)), cells.count("")
        if not 5 <= count < len(cells):
            continue
        if blank:
            facts.append(
                f"{column} is empty in {blank} rows, so images are not kept together by it: fill it, and set group_columns"
            )
        else:
            found.append((count, column))
    return [column for _, column in sorted(found)]


def _labels(table: Table, taken: set[str | None], named: str | None, facts: list[str]) -> tuple[dict[str, Any], list[Question]]:
    """(the fields about labels, what was chosen among several)."""
    free = [column for column in table.header if column not in taken and not set(words_of(column)) & SPLIT_NAMES]
    values = {column: {row[column] for row in table.rows} for column in free}
    flags = [column for column in free if values[column] <= FLAGS | UNCERTAIN and values[column] & FLAGS]
    candidates = {}
    for column in free:
        cells = [row[column] for row in table.rows]
        count = len(values[column])
        like = _rank(column)[0] < len(LABEL_NAMES)  # then its blanks are said of each row, not a reason to take another
        if ("" not in values[column] or like) and 2 <= count <= max(2, min(1000, len(cells) // 2)) and not _measured(cells):
            candidates[column] = (*_rank(column), count)
    order = sorted(candidates, key=lambda column: candidates[column])
    # several columns of 0 and 1 are the labels, unless one column is called so
    ranks = {column: _rank(column) for column in order}
    called = next((c for c in order if ranks[c][0] < len(LABEL_NAMES) and (c not in flags or ranks[c][1] == 0)), None)
    if named is None and len(flags) > 1 and called is None:
        return _flags(table, flags, values, facts), []
    if named is None and called is not None and len(flags) > 1:
        left = [column for column in flags if column != called]
        shown = f"{', '.join(left[:4])}{', ...' * (len(left) > 4)}"
        facts.append(f"not taken for labels: {len(left)} columns of 0 and 1 ({shown})")
    if not order and named is None:
        raise DataError(
            f"{table.path}: no column looks like a label (a few values that come again and again); columns: {', '.join(free)}; "
            "name it with --label COLUMN"
        )
    chosen = named or called or order[0]
    others = tuple(column for column in order if column != chosen)
    questions = [Question("label_column", chosen, others)] if named is None and others else []
    cells = [row[chosen] for row in table.rows]
    separator = next((mark for mark in "|;" if sum(mark in cell for cell in cells) > 0.02 * len(cells)), None)
    if separator:
        names = sorted({part.strip() for cell in cells for part in cell.split(separator) if part.strip()})
        return {"label_column": chosen, "label_separator": separator, "task": "multilabel", "classes": names}, questions
    return {"label_column": chosen, "classes": sorted(set(cells) - {""}, key=_natural)}, questions


def _rank(column: str) -> tuple[int, int]:
    """How much a column is called like a label: (place among the names that labels have, number of other words)."""
    words = words_of(column)
    places = [LABEL_NAMES.index(word) for word in words if word in LABEL_NAMES]
    return (min(places, default=len(LABEL_NAMES)), len(words) - 1) if places else (len(LABEL_NAMES), 0)


def _flags(table: Table, flags: list[str], values: dict[str, set[str]], facts: list[str]) -> dict[str, Any]:
    if any(values[column] & UNCERTAIN for column in flags):
        facts.append("cells of -1 (uncertain) are taken as 0: set data.uncertain to one or ignore for another reading")
        return {"label_columns": flags, "task": "multilabel", "uncertain": "zero"}
    sums = {sum(float(row[column]) for column in flags) for row in table.rows}
    return {"label_columns": flags, **({} if sums == {1.0} else {"task": "multilabel"})}


def _measured(cells: list[str]) -> bool:
    """True for numbers with decimals: an age or a size, not a class."""
    return any(re.fullmatch(r"-?[0-9]+\.[0-9]*[1-9][0-9]*", cell) for cell in cells)


def _natural(text: str) -> tuple[Any, ...]:
    return tuple(int(part) if re.fullmatch(r"[0-9]+", part) else part for part in re.split(r"([0-9]+)", text))


def _splits(tables: dict[str, Table], split_column: str | None, root: Path, fields: dict[str, Any]) -> dict[str, Any]:
    """`train`, ... as a recipe says them; also sets `labels` and `split_column`."""

    def place(table: Table) -> str:
        return os.path.relpath(table.path, root)

    if split_column is None:
        fields["labels"] = {key: place(table) for key, table in tables.items()}
        return {"train": "all"} if list(tables) == ["all"] else {key: key for key in tables}
    table = tables["all"]
    fields |= {"labels": place(table), "split_column": split_column}
    found: dict[str, Any] = {}
    for value in dict.fromkeys(row[split_column] for row in table.rows):
        key = split_of(value)
        if key:  # several words for one are joined
            found[key] = f"{found[key]}+{value}" if key in found else value
    return found
