"""What a sweep has found: a point for every choice of settings, which one validation chooses, and which are not beaten."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from riftcli.functional.pareto import pareto_front
from riftcli.runs.confusion_matrix import has_one_label
from riftcli.runs.reader import gigabytes
from riftcli.runs.series import spread

RETENTION = {"knn": "knn_after", "probe": "probe_after", "neighbours": "mutual_knn", "cka": "cka"}  # as reports call them
TRANSFER = {"shifted": "shifted", "zero-shot": "zero_shot"}  # sets below `eval`, likewise; `mean` is over all of a kind
OF_CAPTIONS = [f"{way}_r{k}" for way in ("image_to_text", "text_to_image") for k in (1, 5, 10)]
GEOMETRY = ["rsa", "rsa_images", "rsa_texts"]
OTHER = ["acc or map", "steered cka", "train seconds", "peak memory GB"]
KEPT = ("cka", "cka_debiased")  # what a tie is broken by, and what accuracy is traded against


@dataclass(frozen=True)
class Point:
    """One row with one choice of settings in one column, over its seeds.

    validation: seed -> the metric that chooses, validation_kept: seed -> similarity there; metrics: name -> {mean, std, n} on
    test; score, kept: the names of the two that are traded against each other.
    """

    row: str
    column: str
    settings: dict[str, Any]
    validation: dict[int, float | None]
    validation_kept: dict[int, float | None]
    metrics: dict[str, dict[str, Any]]
    score: str
    kept: str  # empty where similarity was not measured
    chosen: bool = False
    front: bool = False

    @property
    def seeds(self) -> list[int]:
        """Those that are there."""
        return list(self.validation)

    @property
    def place(self) -> tuple[float, float] | None:
        """(similarity, score) on test, means; None where one is undefined."""
        x = self.metrics[self.kept]["mean"] if self.kept else None
        y = self.metrics[self.score]["mean"]
        return None if x is None or y is None else (x, y)

    @property
    def shown(self) -> str:
        """The settings, short."""
        return ", ".join(f"{key.rpartition('.')[2]} {plain(value)}" for key, value in self.settings.items())


def plain(value: Any) -> str:
    """A setting as people write it."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def make_point(group: Sequence[dict[str, Any]], metrics: Sequence[str], select: str) -> Point:
    """The point of trials that differ in their seed. group: trials of sweep.json, each with its `report`."""
    reports = {trial["seed"]: trial["report"] for trial in group}
    first = group[0]["report"]
    names = list(dict.fromkeys([*metrics, *first["metrics"]]))
    found = {name: spread([metric_value(report, name) for report in reports.values()]) for name in names}
    there = next((name for name in KEPT if name in first.get("validation", {})), "")

    def validated(name: str) -> dict[int, float | None]:
        return {seed: report.get("validation", {}).get(name) for seed, report in reports.items()}

    kept = next((name for name in KEPT if name in found), "")
    trial = group[0]
    where = trial["row"], trial["column"], trial["settings"]
    return Point(*where, validated(select), validated(there), found, _headline(first), kept)


def _headline(report: dict[str, Any]) -> str:
    """Accuracy, or mAP of multi-label data; where it was not measured, the first metric that was."""
    wanted = "acc" if has_one_label(report["confusion_matrix"]) else "map"
    return wanted if wanted in report["metrics"] else next(iter(report["metrics"]))


def metric_value(report: dict[str, Any], name: str) -> float | None:
    """A metric of the report, or the headline; of a retention set `knn SET`, `probe SET`, `cka SET`, `neighbours SET`, and of
    `retention` the mean over all of them; `shifted SET`, `zero-shot SET` and their `mean`; of captions `rsa SET` and recalls.
    """
    if name == "train seconds":
        return report["timing"].get("train_seconds")
    if name == "peak memory GB":
        return gigabytes(report)
    if name == "acc or map":
        name = _headline(report)
    if name == "steered cka":  # what a strength rule ended at
        return report.get("strength", {}).get("cka_debiased")
    if name in report["metrics"]:
        return report["metrics"][name]["value"]
    kind, _, data = name.partition(" ")
    if kind in TRANSFER:
        found = report.get(TRANSFER[kind], {"mean": {}, "sets": {}})
        return found["mean"].get("after") if data == "mean" else found["sets"].get(data, {}).get("after")
    if kind in OF_CAPTIONS or kind in GEOMETRY:
        entry = report.get("captions", {}).get(data, {})
        return entry.get(kind) if kind in GEOMETRY else entry.get("after", {}).get(kind)
    sets = report.get("retention", {})
    key = RETENTION.get(kind, "")
    if data == "retention":
        values = [entry.get(key) for entry in sets.values()]
        return statistics.fmean(values) if values and None not in values else None
    return sets.get(data, {}).get(key)


def choose(
    points: Sequence[Point],
    rows: Sequence[str],
    within: float,
    also: dict[str, list[str]],
    signs: dict[tuple[str, str], float],
) -> dict[tuple[str, str], int]:
    """One point per row and column, by validation alone: (row, column) -> its place.

    Of the points whose validation metric is at most `within` worse than the best of their row, the one that keeps most there.
    Points are compared on the seeds that all of them have: a sweep that is not done has more of some than of others. also: row
    -> further rows whose points are its own too (RIFT* chooses among the runs of RIFT). signs: -1 where less is better. Where
    several points have no value to choose by, none is chosen.
    """
    choices = {}
    for column in dict.fromkeys(point.column for point in points):
        for row in rows:
            mine = {row, *also.get(row, [])}
            own = [i for i, point in enumerate(points) if point.column == column and point.row in mine]
            if len(own) == 1:
                choices[row, column] = own[0]
            seeds = set.intersection(*(set(points[i].seeds) for i in own)) if own else set()
            scored = {}
            for i in own:
                value = mean_over(points[i].validation, seeds)
                if value is not None:
                    scored[i] = signs[points[i].row, column] * value
            if len(own) > 1 and scored:
                near = [i for i, value in scored.items() if value >= max(scored.values()) - within - 1e-9]
                kept = {i: mean_over(points[i].validation_kept, seeds) for i in near}
                choices[row, column] = max(near, key=lambda i: (-math.inf if kept[i] is None else kept[i], scored[i]))
    return choices


def mean_over(values: dict[int, float | None], seeds: set[int]) -> float | None:
    """The mean over these seeds, or over all where none is named; None where one is undefined."""
    chosen = [value for seed, value in values.items() if seed in seeds or not seeds]
    return None if None in chosen else statistics.fmean(chosen)  # type: ignore[arg-type]


def marked(points: Sequence[Point], choices: dict[tuple[str, str], int]) -> list[Point]:
    """The points with what was chosen, and with what is not beaten on test in both score and similarity."""
    places = set(choices.values())
    found = [replace(point, chosen=i in places) for i, point in enumerate(points)]
    for column in dict.fromkeys(point.column for point in points):
        own = {i: p.place for i, p in enumerate(found) if p.column == column and p.place is not None}
        for i, flag in zip(own, pareto_front(list(own.values())), strict=True):
            found[i] = replace(found[i], front=flag)
    return found
