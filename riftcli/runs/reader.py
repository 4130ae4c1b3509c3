"""What a run folder says: its reports and its log, read back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from riftcli import files
from riftcli.errors import StorageError, UsageError

MOST_LOG = 2 << 30  # bytes of metrics.jsonl: of a run of millions of steps


def read_rows(run: Path) -> list[dict[str, Any]]:
    """metrics.jsonl of a run."""
    path = run / "metrics.jsonl"
    if not path.is_file():
        return []
    rows = []
    try:
        lines = files.read_text(path, MOST_LOG).splitlines()
        for number, line in enumerate(lines, 1):
            try:
                row = files.parse_json(line)
                if not isinstance(row.get("kind"), str) or type(row.get("step")) is not int or row["step"] < 0:
                    raise ValueError("neither kind nor step")
                rows.append(row)
            except ValueError:
                if number < len(lines):  # the last one may be in the middle of being written
                    raise ValueError(f"line {number} is not one of a run") from None
    except (OSError, ValueError) as error:
        raise StorageError(f"{path}: damaged ({error}); the run itself resumes without it") from error
    return rows


def read_report(run: Path) -> dict[str, Any]:
    """metrics.json of a finished run; raise UsageError or StorageError."""
    return read_json(run / "metrics.json", f"{run}: no metrics.json; the run has not finished")


@contextmanager
def as_written(path: Path) -> Iterator[None]:
    """Inside the block something is made of what riftcli once wrote; raise StorageError where that is not as it was written."""
    try:
        yield
    except (KeyError, TypeError, AttributeError, ValueError, IndexError, OverflowError) as error:
        raise StorageError(
            f"{path}: damaged, or not of riftcli ({type(error).__name__}: {error}); measure it again, or put it back from a copy"
        ) from error


def gigabytes(report: dict[str, Any]) -> float | None:
    """Peak memory of a run: allocated on the GPU, or resident on the CPU."""
    found = report["timing"].get("peak_memory_bytes")
    return None if found is None else found / 1e9


def read_json(path: Path, missing: str = "") -> dict[str, Any]:
    """A JSON object; raise UsageError(missing) when there is no file."""
    try:
        return files.read_json(path)
    except FileNotFoundError:
        raise UsageError(missing or f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise StorageError(f"{path}: not valid JSON ({error})") from error
