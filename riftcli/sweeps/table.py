"""What a sweep says so far: the settings that validation chose, their numbers on test, and what was not beaten."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from riftcli.catalog import component
from riftcli.functional.pareto import pareto_front
from riftcli.recipe import parse, read
from riftcli.runs.reader import read_report
from riftcli.runs.series import spread
from riftcli.sweeps.folder import Standing, read_sweep, standing

KEPT = ("cka", "cka_debiased")  # what a tie is broken by, and what accuracy is traded against
FRACTIONS = 4  # digits


@dataclass(frozen=True)
class Point:
    """One row with one choice of settings in one column, over its seeds.

    validation: mean of the metric that chooses, validation_kept: of similarity there; metrics: name -> {mean, std, n} on test;
    score, kept: the means that the plot shows.
    """

    row: str
    column: str
    settings: dict[str, Any]
    seeds: list[int]
    validation: float | None
    validation_kept: float | None
    metrics: dict[str, dict[str, Any]]
    score: float | None
    kept: float | None
    chosen: bool = False
    front: bool = False

    @property
    def shown(self) -> str:
        """The settings, short."""
        return ", ".join(f"{key.rpartition('.')[2]} {_plain(value)}" for key, value in self.settings.items())


@dataclass(frozen=True)
class SweepTable:
    """Everything that is shown of a sweep."""

    described: dict[str, Any]
    standings: dict[str, Standing]
    points: list[Point]
    select: dict[tuple[str, str], str] = field(default_factory=dict)  # (row, column) -> the metric that chose
    choices: dict[tuple[str, str], int] = field(default_factory=dict)  # (row, column) -> place in points

    def counts(self) -> dict[str, int]:
        """State -> how many trials."""
        found: dict[str, int] = {}
        for one in self.standings.values():
            found[one.state] = found.get(one.state, 0) + 1
        return found

    def chosen(self, row: str, column: str) -> Point | None:
        """The point that stands in the table."""
        place = self.choices.get((row, column))
        return None if place is None else self.points[place]


def read_table(sweep: Path) -> SweepTable:
    """Read what is there; works while the sweep runs."""
    described = read_sweep(sweep)
    standings = {trial["name"]: standing(sweep, trial["name"]) for trial in described["trials"]}
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    select: dict[tuple[str, str], str] = {}
    for trial in described["trials"]:
        if standings[trial["name"]].state == "completed":
            run = sweep / "trials" / trial["name"]
            cell = (trial["row"], trial["column"])
            if cell not in select:
                own = parse(read(run / "recipe.resolved.yaml"), "recipe.yaml", [])
                select[cell] = described["select"] or own.eval.best
            entry = {**trial, "report": read_report(run)}
            groups.setdefault((trial["column"], trial["row"], trial["group"]), []).append(entry)
    points = [_point(group, described["metrics"], select[row, column]) for (column, row, _), group in groups.items()]
    signs = {cell: 1.0 if component("metric", name)().higher_is_better else -1.0 for cell, name in select.items()}
    choices = choose(points, list(described["rows"]), described["within"], described["also"], signs)
    return SweepTable(described, standings, marked(points, choices), select, choices)


def _point(group: list[dict[str, Any]], metrics: Sequence[str], select: str) -> Point:
    reports = [trial["report"] for trial in group]
    first = reports[0]
    names = list(dict.fromkeys([*metrics, *first["metrics"]]))
    found = {name: spread([_value(report, name) for report in reports]) for name in names}
    validation = _validated(reports, select)
    kept_there = next((value for name in KEPT if (value := _validated(reports, name)) is not None), None)
    kept = next((found[name]["mean"] for name in KEPT if name in found and found[name]["mean"] is not None), None)
    score = found[_headline(first)]["mean"]
    return Point(
        group[0]["row"],
        group[0]["column"],
        group[0]["settings"],
        [trial["seed"] for trial in group],
        validation,
        kept_there,
        found,
        score,
        kept,
    )


def _validated(reports: Sequence[dict[str, Any]], name: str) -> float | None:
    return spread([report.get("validation", {}).get(name) for report in reports])["mean"]


def _headline(report: dict[str, Any]) -> str:
    """Accuracy, or mAP of multi-label data; where it was not measured, the first metric that was."""
    wanted = "acc" if "counts" in report["confusion_matrix"] else "map"
    return wanted if wanted in report["metrics"] else next(iter(report["metrics"]))


def _value(report: dict[str, Any], name: str) -> float | None:
    """A metric of the report, of a retention set (`knn SET`, `probe SET`, `cka SET`, `neighbours SET`), or the headline."""
    if name == "acc or map":
        name = _headline(report)
    if name == "steered cka":  # what a strength rule ended at
        return report.get("strength", {}).get("cka_debiased")
    if name in report["metrics"]:
        return report["metrics"][name]["value"]
    kind, _, data = name.partition(" ")
    entry = report.get("retention", {}).get(data, {})
    return entry.get({"knn": "knn_after", "probe": "probe_after", "neighbours": "mutual_knn"}.get(kind, kind))


def choose(
    points: list[Point],
    rows: Sequence[str],
    within: float,
    also: dict[str, list[str]],
    signs: dict[tuple[str, str], float],
) -> dict[tuple[str, str], int]:
    """One point per row and column, by validation alone: (row, column) -> its place.

    Of the points whose validation metric is at most `within` worse than the best of their row, the one that keeps most there.
    also: row -> further rows whose points are its own too (RIFT* chooses among the runs of RIFT). signs: -1 where less is
    better. Where several points have no value to choose by, none is chosen.
    """
    choices = {}
    for column in dict.fromkeys(point.column for point in points):
        for row in rows:
            mine = {row, *also.get(row, [])}
            own = [i for i, point in enumerate(points) if point.column == column and point.row in mine]
            if len(own) == 1:
                choices[row, column] = own[0]
            scored = {}
            for i in own:
                value = points[i].validation
                if value is not None:
                    scored[i] = signs[points[i].row, column] * value
            if len(own) > 1 and scored:
                near = [i for i, value in scored.items() if value >= max(scored.values()) - within - 1e-9]
                choices[row, column] = max(near, key=lambda i: (_or_low(points[i].validation_kept), scored[i]))
    return choices


def marked(points: list[Point], choices: dict[tuple[str, str], int]) -> list[Point]:
    """The points with what was chosen, and with what is not beaten on test in both score and similarity."""
    places = set(choices.values())
    found = [replace(point, chosen=i in places) for i, point in enumerate(points)]
    for column in dict.fromkeys(point.column for point in points):
        own = [i for i, p in enumerate(found) if p.column == column and p.score is not None and p.kept is not None]
        flags = pareto_front([(found[i].kept, found[i].score) for i in own])  # type: ignore[misc]
        for i, flag in zip(own, flags, strict=True):
            found[i] = replace(found[i], front=flag)
    return found


def _or_low(value: float | None) -> float:
    return -math.inf if value is None else value


# ---- as text


def grid(table: SweepTable) -> tuple[list[str], list[list[str]]]:
    """(header, lines): a line per row of the sweep, a cell per column and metric, `ours (paper)` where a paper has a number."""
    d = table.described
    columns, metrics = d["columns"], d["metrics"]
    several = len(columns) > 1
    header = ["", *(f"{label} {metric}" if several else metric for label in columns.values() for metric in metrics)]
    header += [f"mean {metric}" for metric in metrics] * several
    lines = []
    means = {row: _means(table, row) for row in d["rows"]}
    for row, label in d["rows"].items():
        cells = []
        for column in columns:
            point = table.chosen(row, column)
            for i, metric in enumerate(metrics):
                cells.append(_cell(point, metric, d["paper"].get(row, {}).get(column), i))
            if point is not None and point.settings and cells[-len(metrics)]:
                cells[-len(metrics)] += f"; {point.shown}"
        if several:
            cells += [_mean_cell(means, row, d["baseline"], metric) for metric in metrics]
        lines.append([label, *cells])
    return header, lines


def _cell(point: Point | None, metric: str, paper: list[float | None] | None, place: int) -> str:
    text = ""
    if point is not None and point.metrics[metric]["mean"] is not None:
        entry = point.metrics[metric]
        text = f"{entry['mean']:.{FRACTIONS}f}" + (f" +- {entry['std']:.{FRACTIONS}f}" if entry["std"] is not None else "")
    published = paper[place] if paper else None
    return text if published is None else f"{text} ({published:g})".strip()


def _means(table: SweepTable, row: str) -> dict[str, float | None]:
    """Metric -> mean over the columns, where every column has it."""
    found: dict[str, float | None] = {}
    for metric in table.described["metrics"]:
        points = [table.chosen(row, column) for column in table.described["columns"]]
        values = [None if p is None else p.metrics[metric]["mean"] for p in points]
        known = [value for value in values if value is not None]
        found[metric] = sum(known) / len(known) if len(known) == len(values) else None
    return found


def _mean_cell(means: dict[str, dict[str, float | None]], row: str, baseline: str | None, metric: str) -> str:
    value = means[row][metric]
    if value is None:
        return ""
    base = means.get(baseline or "", {}).get(metric)
    change = f" ({100 * (value / base - 1):+.2f} %)" if base and row != baseline else ""
    return f"{value:.{FRACTIONS}f}{change}"


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return str(value)


def markdown(table: SweepTable) -> str:
    """The same as Markdown."""
    header, lines = grid(table)
    rows = [header, ["---"] * len(header), *lines]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def flat(table: SweepTable) -> list[dict[str, Any]]:
    """One row per point, with every value: what table.csv and --json hold."""
    return [
        {
            "row": point.row,
            "column": point.column,
            **{f"set {key}": _plain(value) for key, value in point.settings.items()},
            "seeds": " ".join(map(str, point.seeds)),
            "chosen": point.chosen,
            "not_beaten": point.front,
            "validation": point.validation,
            "validation_kept": point.validation_kept,
            **{f"{name} {part}": entry[part] for name, entry in point.metrics.items() for part in ("mean", "std", "n")},
        }
        for point in table.points
    ]
