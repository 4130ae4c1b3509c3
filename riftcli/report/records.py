"""What finished runs say about themselves and what was measured on them since: the numbers that tables are made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from riftcli import catalog
from riftcli.errors import UsageError
from riftcli.evaluation.candidates import Candidate, short_name
from riftcli.recipe import Recipe
from riftcli.runs.confusion_matrix import has_one_label
from riftcli.runs.reader import as_written, gigabytes, read_json, read_report


@dataclass(frozen=True)
class Record:
    """One run. values: column -> number; better: column -> True where more is better, absent where there is no direction."""

    label: str
    group: str
    recipe: Recipe
    data: str
    seed: int
    folder: Path
    values: dict[str, float]
    better: dict[str, bool] = field(default_factory=dict)
    is_start: bool = False  # the pretrained model of a run, not the run

    @property
    def repeat(self) -> tuple[Any, ...]:
        """Seed, and where there are folds which one: what tells the runs of a row apart and pairs them with another row's."""
        val = self.recipe.data.val
        return self.seed, *((val.folds, val.fold, val.seed) if val is not None and val.folds else ())


@dataclass
class Columns:
    """The columns of one record, as they are noted; what is undefined is left out."""

    values: dict[str, float] = field(default_factory=dict)
    better: dict[str, bool] = field(default_factory=dict)

    def __call__(self, name: str, value: float | None, more_is_better: bool | None = None) -> None:
        """Note one value, and whether more of it is better, where there is a direction."""
        if value is None:
            return
        self.values[name] = float(value)
        if more_is_better is not None:
            self.better[name] = more_is_better


def record(candidate: Candidate) -> Record:
    """The final report of a run, and the kNN, similarity and sharpness that were measured on it since."""
    run = candidate.folder
    if run is None or not candidate.is_run:
        raise UsageError(f"{candidate.label}: not a run folder; tables are of finished runs")
    with as_written(run):
        return _record(candidate, run)


def _record(candidate: Candidate, run: Path) -> Record:
    report, note = read_report(run), Columns()
    for name, entry in report["metrics"].items():
        note(name, entry["value"], entry["higher_is_better"])
    for name, entry in report.get("retention", {}).items():
        note(f"knn {name}", entry["knn_after"], True)
        note(f"probe {name}", entry.get("probe_after"), True)
        note(f"cka {name}", entry["cka"], True)
    _note_transfer(report, note, "after")
    here = (report["data"]["name"], report["data"]["split"])
    for name in catalog.names("evaluator"):
        evaluator: Any = catalog.component("evaluator", name)
        if hasattr(evaluator, "columns"):
            for column, value, more_is_better in evaluator.columns(_measured(run, name, report), here):
                if column not in report["metrics"]:
                    note(column, value, more_is_better)
    if has_one_label(report["confusion_matrix"]):
        note("acc or map", note.values.get("acc"), True)
    else:
        note("acc or map", note.values.get("map"), True)
    note("trainable parameters", report["model"]["trainable_params"], False)
    note("train seconds", report["timing"].get("train_seconds"), False)
    note("peak memory GB", gigabytes(report), False)
    return Record(
        candidate.label,
        candidate.group,
        candidate.recipe,
        report["data"]["name"],
        report["env"]["seed"],
        run,
        note.values,
        note.better,
    )


SET_KINDS = {"shifted": "shifted", "zero_shot": "zero-shot"}  # key of a report -> what its columns are called


def _note_transfer(report: dict[str, Any], note: Columns, when: str) -> None:
    """Columns of the sets beside the test split, before or after finetuning: the means first."""
    for key, title in SET_KINDS.items():
        if key in report:
            note(f"{title} mean", report[key]["mean"][when], True)
            for name, entry in report[key]["sets"].items():
                note(f"{title} {name}", entry[when], entry["higher_is_better"])
    for name, entry in report.get("captions", {}).items():
        for way in ("image_to_text_r1", "text_to_image_r1"):
            note(f"{way} {name}", entry[when][way], True)
        if when == "after":
            note(f"rsa {name}", entry["rsa"], True)


def start_records(records: Sequence[Record]) -> list[Record]:
    """What the pretrained models of runs with a text tower score as they come, one per model and data set: a row above theirs."""
    found: dict[tuple[str, str], Record] = {}
    for own in records:
        with as_written(own.folder):
            _note_start(own, found)
    return list(found.values())


def _note_start(own: Record, found: dict[tuple[str, str], Record]) -> None:
    """Add what the start of this run scored, unless there was no text tower, or it is there already."""
    report = read_report(own.folder)
    name = f"pretrained {short_name(own.recipe.model.name)}"
    if "zero_shot_start" not in report or (name, own.data) in found:
        return
    note = Columns()
    for column, entry in report["zero_shot_start"].items():
        note(column, entry["value"], entry["higher_is_better"])
    note("acc or map", note.values.get("acc"), True)
    _note_transfer(report, note, "before")
    where = own.recipe, own.data, own.seed, own.folder
    found[name, own.data] = Record(name, name, *where, note.values, note.better, is_start=True)


def _measured(run: Path, command: str, report: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows that a command left about this run's weights, wherever the folder has been moved or renamed since."""
    rows = []
    for path in sorted(run.glob(f"{command}/*/metrics.json")):
        found = read_json(path)
        own = {m["label"] for m in found["models"] if m["sha256"] and m["sha256"] == report["model"]["sha256"]}
        rows += [row for row in found["rows"] if row["model"] in own]
    return rows
