"""The runs below a folder: what each is, what came of it, and what it takes on the disk."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from riftcli import files
from riftcli.errors import RiftError, StorageError, UsageError
from riftcli.runs.folder import in_progress, read_run, training_runs


@dataclass(frozen=True)
class Entry:
    """One run. score: accuracy, or mAP of multi-label data; cka: similarity to the pretrained model; size: bytes."""

    path: Path
    created: str
    recipe: str
    status: str
    score: float | None
    cka: float | None
    size: int


def runs_below(folder: Path) -> list[Entry]:
    """Every run below a folder, the oldest first; raise UsageError where there is no such folder."""
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder; `rift runs --in DIR` lists the runs below DIR (default runs/)")
    found = [_entry(run) for run in training_runs(folder)]
    return sorted(found, key=lambda entry: (entry.created, str(entry.path)))


def _entry(run: Path) -> Entry:
    about, report = _about(run), _read(run / "metrics.json")
    status = about.get("status", "unreadable")
    if status == "running" and not in_progress(run):
        status = "interrupted"  # killed before it could say so
    metrics = report.get("metrics")
    entries = metrics.items() if isinstance(metrics, dict) else ()
    scores = {name: entry.get("value") for name, entry in entries if isinstance(entry, dict)}
    numbers = {name: value for name, value in scores.items() if isinstance(value, int | float)}
    score = numbers.get("acc", numbers.get("map"))
    created, recipe = str(about.get("created", "")), str(about.get("recipe", ""))
    return Entry(run, created, recipe, str(status), score, numbers.get("cka"), size_of(run))


def _about(run: Path) -> dict[str, Any]:
    """run.json, mended where the process of the run ended without a word."""
    with suppress(RiftError):
        return read_run(run)
    return {}


def _read(path: Path) -> dict[str, Any]:
    """A JSON object, empty where there is none that can be read: a list of runs shows the others all the same."""
    try:
        return files.read_json(path)
    except (OSError, ValueError):
        return {}


def size_of(folder: Path) -> int:
    """Bytes of the files below a folder; links are not followed, and what goes while they are counted counts as nothing."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                total += os.lstat(os.path.join(place, name)).st_size
    return total


def check_removable(run: Path, keep_best: bool) -> None:
    """Raise UsageError for what is no run, or one that is being trained, or one that is not finished where its best is kept."""
    if not (run / "run.json").is_file():
        raise UsageError(f"{run}: not a run folder (no run.json)")
    if in_progress(run):
        raise UsageError(f"{run}: still in progress; stop it first")
    if keep_best and _read(run / "run.json").get("status") != "completed":
        raise UsageError(f"{run}: not finished, and without last/ it never can be; finish it with --resume, or remove it whole")


def remove_run(run: Path, keep_best: bool) -> int:
    """Delete a run, or with keep_best only what it needs to resume: its best weights, log and reports stay. Returns the bytes.

    Raises UsageError as check_removable does, and StorageError.
    """
    check_removable(run, keep_best)
    target = run / "last" if keep_best else run
    if not target.is_dir():
        return 0
    freed = size_of(target)
    try:
        shutil.rmtree(target)
    except OSError as error:
        raise StorageError(f"{error.filename}: cannot be removed ({error.strerror})") from error
    return freed
