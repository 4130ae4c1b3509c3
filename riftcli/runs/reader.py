"""What a run folder says: its reports and its log, read back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from riftcli.errors import StorageError, UsageError


def read_rows(run: Path) -> list[dict[str, Any]]:
    """metrics.jsonl of a run."""
    path = run / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def read_report(run: Path) -> dict[str, Any]:
    """metrics.json of a finished run; raise UsageError or StorageError."""
    return read_json(run / "metrics.json", f"{run}: no metrics.json; the run has not finished")


def gigabytes(report: dict[str, Any]) -> float | None:
    """Peak memory of a run: allocated on the GPU, or resident on the CPU."""
    found = report["timing"].get("peak_memory_bytes")
    return None if found is None else found / 1e9


def read_json(path: Path, missing: str = "") -> dict[str, Any]:
    """A JSON object; raise UsageError(missing) when there is no file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(missing or f"{path}: no such file") from None
    except ValueError as error:
        raise StorageError(f"{path}: not valid JSON ({error})") from error
