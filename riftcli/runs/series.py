"""Several seeds or folds of one recipe: mean, standard deviation (ddof 1) and every value."""

from __future__ import annotations

import json
import re
import shutil
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from riftcli.errors import UsageError
from riftcli.files import write_json
from riftcli.recipe.data_sources import SplitSpec
from riftcli.runs.folder import read_run

RETAINED = ("knn_before", "knn_after", "cka", "probe_before", "probe_after", "mutual_knn")


def spread(values: list[float | None]) -> dict[str, Any]:
    """{mean, std, n, values}; std is null for one value, mean too when a value is undefined."""
    known = [value for value in values if value is not None]
    whole = len(known) == len(values)
    mean = statistics.fmean(known) if whole else None
    std = statistics.stdev(known) if whole and len(known) > 1 else None
    entry: dict[str, Any] = {"value": mean, "mean": mean, "std": std, "n": len(values), "values": values}
    return entry if whole else {**entry, "reason": "undefined in at least one run"}


@dataclass(frozen=True)
class Series:
    """Complete runs of one recipe that differ in one thing: the seed, or the fold that is held out."""

    what: str  # "seeds" | "folds"
    overrides: dict[str, list[str]]  # folder of a run -> what makes it this one

    @classmethod
    def of_seeds(cls, first: int, count: int) -> Series:
        """Runs s0, s1, ..."""
        return cls("seeds", {f"s{seed}": [f"train.seed={seed}"] for seed in range(first, first + count)})

    @classmethod
    def of_folds(cls, val: SplitSpec | None, train: SplitSpec, count: int) -> Series:
        """Runs f0, f1, ...: each validates on one part of the training split. Group and seed of `val` are kept."""
        held = {"from": train.name, "folds": count}
        if val is not None and val.held_out:
            held |= {"seed": val.seed} | ({"group": val.group} if val.group else {})
        return cls("folds", {f"f{i}": [f"data.val={json.dumps({**held, 'fold': i})}"] for i in range(count)})


def drop_others(folder: Path, series: Series) -> None:
    """Delete the runs of an earlier series that this one, now complete, has none in place of."""
    for old in folder.glob(f"{series.what[0]}*"):
        if old.name not in series.overrides and SEED.fullmatch(old.name) and (old / "run.json").is_file():
            shutil.rmtree(old)


def check_parent(folder: Path, what: str) -> None:
    """Raise UsageError for a folder that holds anything but such runs; those go on, or are replaced one by one."""
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    pattern = f"{what[0]}*"
    if (folder / "run.json").is_file() or not list(folder.glob(f"{pattern}/run.json")):
        word = "repeats" if what == "seeds" else "folds"
        raise UsageError(f"--out {folder}: folder is not empty and holds no {word}; choose another --out")


def summarise(folder: Path, what: str, reports: list[dict[str, Any]]) -> dict[str, Any]:
    """Write folder/metrics.json over the reports of the single runs, and print the spread."""
    first = reports[0]
    metrics = {}
    for name, entry in first["metrics"].items():
        values = [report["metrics"][name]["value"] for report in reports]
        metrics[name] = {**spread(values), "higher_is_better": entry["higher_is_better"]}
    retention = {
        name: {
            "k": entry["k"],
            **{key: spread([r["retention"][name][key] for r in reports]) for key in RETAINED if key in entry},
        }
        for name, entry in first["retention"].items()
    }
    combined = {
        **{key: first[key] for key in ("schema", "created", "data")},
        "command": "finetune --repeats" if what == "seeds" else "finetune --folds",
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
    if what == "folds":
        names = dict.fromkeys(name for report in reports for name in report["validation"])
        combined["cross_validation"] = {name: spread([r["validation"].get(name) for r in reports]) for name in names}
        _print_spread(combined["cross_validation"], "folds, on the held-out fold")
    write_json(folder / "metrics.json", combined)
    on_test = not first["data"].get("chose_weights")  # without a test split, the report of a run is on its fold already
    if what == "seeds" or on_test:
        _print_spread(metrics, "folds, on the test split" if what == "folds" else "seeds")
    print(f"report: {folder / 'metrics.json'}", file=sys.stderr)
    return combined


def _print_spread(entries: dict[str, Any], what: str) -> None:
    for name, entry in entries.items():
        if entry["mean"] is not None:
            print(f"{name}: {entry['mean']:.4f} +- {entry['std'] or 0:.4f} over {entry['n']} {what}", file=sys.stderr)


def _home(folder: Path) -> Path:
    """The folder that seeds or folds share, else the run itself."""
    return folder.parent if SEED.fullmatch(folder.name) else folder


def _completed(run: Path) -> bool:
    return read_run(run).get("status") == "completed"


SEED = re.compile(r"[sf]\d+")  # folders of --repeats and --folds


def seeds_of(path: Path) -> list[Path]:
    """The runs below a folder of --repeats or --folds, in order, or the finished ones of a sweep; none for a run itself."""
    if (path / "run.json").is_file():
        return []
    if (path / "sweep.json").is_file():
        groups = sorted(path.glob("trials/*"))
        return [run for group in groups for run in seeds_of(group) if _completed(run)]
    named = (file.parent for file in path.glob("*/run.json") if SEED.fullmatch(file.parent.name))
    return sorted(named, key=lambda run: (len(run.name), run.name))
