"""What an evaluation command found: rows of plain values, printed, and written as JSON and CSV."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

from riftcli.console import note_line
from riftcli.escaping import cell, file_name
from riftcli.files import write_json, writing
from riftcli.runs.provenance import now

SCHEMA = "rift.table/1"
Row = dict[str, Any]
Column = tuple[str, float | None, bool | None]  # name in a comparison of runs, value, whether more is better


@dataclass
class ResultTable:
    """One command's result. rows: flat, all with the same keys; a value that is not defined is None."""

    command: str
    settings: dict[str, Any]
    models: list[dict[str, Any]]
    rows: list[Row]
    env: dict[str, Any]
    tables: dict[str, list[Row]] = field(default_factory=dict)  # further tables by name, with the same leading columns
    seconds: float | None = None
    usual: dict[str, Any] = field(default_factory=dict)  # settings in rows whose usual value names no folder of its own
    pictures: dict[str, Any] = field(default_factory=dict)  # what a picture needs beside the rows; never written

    def report(self) -> dict[str, Any]:
        """The JSON form (schema rift.table/1)."""
        return {
            "schema": SCHEMA,
            "command": self.command,
            "created": now(),
            "settings": self.settings,
            "models": self.models,
            "rows": self.rows,
            **self.tables,
            "timing": {"seconds": self.seconds},
            "env": self.env,
        }

    def write(self, folder: Path) -> Path:
        """FOLDER/metrics.json, table.csv and a CSV of every further table; returns the first."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, rows in {"table": self.rows, **self.tables}.items():
            write_csv(folder / f"{name}.csv", rows)
        write_json(folder / "metrics.json", self.report())
        return folder / "metrics.json"


def write_csv(path: Path, rows: Iterable[Row], columns: Sequence[str] | None = None) -> None:
    """Rows with a header; None is an empty cell."""
    rows = list(rows)
    columns = columns or list(dict.fromkeys(key for row in rows for key in row))
    with writing(path) as file:
        write_cells(file, [columns, *([row.get(column) for column in columns] for row in rows)])


def write_cells(file: IO[str], lines: Iterable[Iterable[object]]) -> None:
    """Lines of a CSV for people: no cell is a formula."""
    csv.writer(file).writerows([cell(value) for value in line] for line in lines)


def format_number(value: Any, std: float | None = None, digits: int = 4) -> str:
    """A number as people read it, with its spread."""
    if value is None:
        return "undefined"
    if not isinstance(value, float):
        return str(value)
    spread = "" if std is None else f" +- {std:.{digits}f}"
    return f"{value:.{digits}f}{spread}"


def averaged(rows: Iterable[Row], by: Sequence[str], value: str) -> dict[tuple, tuple[float | None, float | None, int]]:
    """(mean, standard deviation with ddof 1 or None, count) of `value` per combination of `by`, in order of appearance.

    A group with an undefined value has no mean.
    """
    from riftcli.runs.series import spread

    groups: dict[tuple, list[float | None]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in by), []).append(row[value])
    found = {}
    for key, values in groups.items():
        entry = spread(values)
        found[key] = (entry["mean"], entry["std"], entry["n"])
    return found


def write_into_runs(table: ResultTable, runs: dict[str, Path], out: Path | None) -> list[Path]:
    """Write the rows of every run into RUN/<command>/<place>/, with those of the models that it is compared with; and all
    of them to `out`. runs: label -> run folder. Returns the files.
    """
    written = [table.write(out)] if out else []
    for label, folder in runs.items():
        if out and not os.access(folder, os.W_OK):
            note_line(f"note: {folder} is read-only: its numbers are in {out} alone")
            continue
        mine = [row for row in table.rows if row["model"] == label or row["model"] not in runs]
        for name in dict.fromkeys(place_of(row, table.usual) for row in mine):
            rows = [row for row in mine if place_of(row, table.usual) == name]
            seen = {row[key] for row in rows for key in ("model", "reference") if key in row}
            part = replace(
                table,
                rows=rows,
                models=[model for model in table.models if model["label"] in seen],
                tables={
                    key: [row for row in further if row["model"] in seen and place_of(row, table.usual) == name]
                    for key, further in table.tables.items()
                },
            )
            written.append(part.write(folder / table.command / name))
    return written


def place_of(row: Row, usual: dict[str, Any]) -> str:
    """Folder of a row below its command: the data, the split, and whatever is not as usual. Another question has another
    folder and never overwrites the answer to this one.
    """
    parts = [str(row[key]) for key in ("data", "split") if key in row]
    parts += [f"{key}-{row[key]}" for key, value in usual.items() if key in row and row[key] != value]
    if not str(row.get("reference", "pretrained")).startswith("pretrained"):
        parts.append(f"against-{row['reference']}")
    return file_name(re.sub(r"[^\w.=-]+", "-", "-".join(parts)))


def where(row: Row, here: tuple[str, ...], usual: dict[str, Any]) -> str:
    """What a column must say beside its name: data and split where they are not `here`, and unusual settings."""
    own = tuple(row[key] for key in ("data", "split")[: len(here)])
    parts = [] if len(here) > 1 and own == here else [str(part) for part in own]
    parts += [f"{key}={row[key]}" for key, value in usual.items() if key in row and row[key] != value]
    return " ".join(parts)
