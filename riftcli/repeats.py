"""Several seeds of one recipe: mean, standard deviation (ddof 1) and every value."""

from __future__ import annotations

import shutil
import statistics
import sys
from pathlib import Path
from typing import Any

from riftcli.errors import UsageError
from riftcli.run import write_json


def spread(values: list[float | None]) -> dict[str, Any]:
    """{mean, std, n, values}; std is null for one value, mean too when a value is undefined."""
    known = [value for value in values if value is not None]
    whole = len(known) == len(values)
    mean = statistics.fmean(known) if whole else None
    std = statistics.stdev(known) if whole and len(known) > 1 else None
    entry: dict[str, Any] = {"value": mean, "mean": mean, "std": std, "n": len(values), "values": values}
    return entry if whole else {**entry, "reason": "undefined in at least one run"}


def check_parent(folder: Path, overwrite: bool) -> None:
    """Raise UsageError for a folder that holds anything but repeats; those go on, or are replaced with --overwrite."""
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    if (folder / "run.json").is_file() or not list(folder.glob("s*/run.json")):
        raise UsageError(f"--out {folder}: folder is not empty and holds no repeats; choose another --out")
    if overwrite:
        for old in folder.glob("s*"):
            if (old / "run.json").is_file():
                shutil.rmtree(old)


def summarise(folder: Path, reports: list[dict[str, Any]]) -> dict[str, Any]:
    """Write folder/metrics.json over the reports of the single runs, and print the spread."""
    first = reports[0]
    metrics = {}
    for name, entry in first["metrics"].items():
        values = [report["metrics"][name]["value"] for report in reports]
        metrics[name] = {**spread(values), "higher_is_better": entry["higher_is_better"]}
    retention = {
        name: {
            "k": entry["k"],
            **{key: spread([r["retention"][name][key] for r in reports]) for key in ("knn_before", "knn_after", "cka")},
        }
        for name, entry in first["retention"].items()
    }
    combined = {
        **{key: first[key] for key in ("schema", "created", "data")},
        "command": "finetune --repeats",
        "model": {**first["model"], "path": str(folder), "sha256": None, "epoch": None},
        "seeds": [r["env"]["seed"] for r in reports],
        "metrics": metrics,
        "retention": retention,
        "per_class": {},
        "confusion_matrix": {},
        "timing": {
            "seconds": sum(r["timing"]["seconds"] for r in reports),
            "train_seconds": statistics.fmean(r["timing"]["train_seconds"] for r in reports),
            "images_per_second": statistics.fmean(r["timing"]["images_per_second"] or 0 for r in reports),
            "peak_memory_bytes": max(r["timing"]["peak_memory_bytes"] for r in reports),
        },
        "env": first["env"],
    }
    write_json(folder / "metrics.json", combined)
    for name, entry in metrics.items():
        if entry["mean"] is not None:
            print(f"{name}: {entry['mean']:.4f} +- {entry['std']:.4f} over {entry['n']} seeds", file=sys.stderr)
    print(f"report: {folder / 'metrics.json'}", file=sys.stderr)
    return combined
