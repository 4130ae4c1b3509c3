"""What finished runs say about themselves and what was measured on them since: the numbers that tables are made of."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from riftcli.errors import StorageError, UsageError
from riftcli.subjects import Subject


@dataclass(frozen=True)
class Record:
    """One run. values: column -> number; better: column -> True where more is better, absent where there is no direction."""

    label: str
    group: str
    method: dict[str, Any]
    data: str
    seed: int
    folder: Path
    values: dict[str, float]
    better: dict[str, bool] = field(default_factory=dict)


def read_report(run: Path) -> dict[str, Any]:
    """metrics.json of a finished run; raise UsageError or StorageError."""
    return read_json(run / "metrics.json", f"{run}: no metrics.json; the run has not finished")


def read_json(path: Path, missing: str = "") -> dict[str, Any]:
    """A JSON object; raise UsageError(missing) when there is no file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(missing or f"{path}: no such file") from None
    except ValueError as error:
        raise StorageError(f"{path}: not valid JSON ({error})") from error


def record(subject: Subject) -> Record:
    """The final report of a run, and the kNN, similarity and sharpness that were measured on it since."""
    assert subject.folder is not None
    run = subject.folder
    report = read_report(run)
    values: dict[str, float | None] = {}
    better: dict[str, bool] = {}

    def note(name: str, value: float | None, more_is_better: bool | None = None) -> None:
        if value is not None:
            values[name] = float(value)
            if more_is_better is not None:
                better[name] = more_is_better

    for name, entry in report["metrics"].items():
        note(name, entry["value"], entry["higher_is_better"])
    for name, entry in report.get("retention", {}).items():
        note(f"knn {name}", entry["knn_after"], True)
        note(f"cka {name}", entry["cka"], True)
    for path in sorted(run.glob("knn/*/metrics.json")):
        for row in _own(path, subject.label):
            k = "" if row["k"] is None else f" k={row['k']}"
            shots = f" {row['shots']} per class" if row["shots"] else ""
            note(f"{row['classifier']}{k}{shots} {row['data']}", row["acc"], True)
    for path in sorted(run.glob("similarity/*/metrics.json")):
        for row in _own(path, subject.label):
            if row["data"] != report["data"]["name"] or row["metric"] not in report["metrics"]:
                direction = row["metric"] not in ("procrustes", "centre_distance")
                note(f"{row['metric']} {row['data']}", row["value"], direction)
    for path in sorted(run.glob("sharpness/*/metrics.json")):
        for row in _own(path, subject.label):
            note("sharpness" if row["method"] == "sam" else f"sharpness {row['method']}", row["sharpness"], False)
    note("trainable parameters", report["model"]["trainable_params"], False)
    note("train seconds", report["timing"].get("train_seconds"), False)
    return Record(
        subject.label,
        subject.group,
        report["model"]["method"],
        report["data"]["name"],
        report["env"]["seed"],
        run,
        {name: value for name, value in values.items() if value is not None},
        better,
    )


def _own(path: Path, label: str) -> list[dict[str, Any]]:
    """Rows of a table that are about this run, not about what it is compared with."""
    rows = read_json(path)["rows"]
    return [row for row in rows if row["model"].split("/")[-1] == label.split("/")[-1]]
