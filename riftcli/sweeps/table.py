"""The table of a sweep as it stands: counts, chosen settings, published numbers; as text and as rows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from riftcli import escaping
from riftcli.catalog import component
from riftcli.recipe import stored
from riftcli.runs.reader import read_report
from riftcli.sweeps.folder import Standing, read_sweep, standings
from riftcli.sweeps.points import Point, choose, make_point, marked, mean_over, plain

DIGITS = 4


@dataclass(frozen=True)
class SweepTable:
    """Everything that is shown of a sweep. select: (row, column) -> the metric that chose; choices: -> place in points."""

    described: dict[str, Any]
    standings: dict[str, Standing]
    points: list[Point]
    select: dict[tuple[str, str], str]
    choices: dict[tuple[str, str], int]

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

    def failed(self) -> dict[str, Standing]:
        """Trials that ended with an error."""
        return {name: found for name, found in self.standings.items() if found.state == "failed"}


def read_table(sweep: Path) -> SweepTable:
    """Read what is there; works while the sweep runs."""
    described = read_sweep(sweep)
    found = standings(sweep, [trial["name"] for trial in described["trials"]])
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    given_up = {trial["group"] for trial in described["trials"] if found[trial["name"]].state == "pruned"}
    select: dict[tuple[str, str], str] = {}
    for trial in described["trials"]:
        if found[trial["name"]].state == "completed" and trial["group"] not in given_up:
            run = sweep / "trials" / trial["name"]
            cell = (trial["row"], trial["column"])
            if cell not in select:
                own = stored(run / "recipe.resolved.yaml")
                select[cell] = described["select"] or own.eval.best
            groups.setdefault((*cell, trial["group"]), []).append({**trial, "report": read_report(run)})
    points = [make_point(group, described["metrics"], select[row, column]) for (row, column, _), group in groups.items()]
    signs = {cell: 1.0 if component("metric", name)().higher_is_better else -1.0 for cell, name in select.items()}
    choices = choose(points, list(described["rows"]), described["within"], described["also"], signs)
    return SweepTable(described, found, marked(points, choices), select, choices)


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
        text = f"{entry['mean']:.{DIGITS}f}" + (f" +- {entry['std']:.{DIGITS}f}" if entry["std"] is not None else "")
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
    return f"{value:.{DIGITS}f}{change}"


def markdown(table: SweepTable) -> str:
    """The same as Markdown."""
    header, lines = grid(table)
    rows = [header, ["---"] * len(header), *lines]
    return "".join(f"| {' | '.join(map(escaping.markdown, row))} |\n" for row in rows)


def flat(table: SweepTable) -> list[dict[str, Any]]:
    """One row per point, with every value: what table.csv and --json hold."""
    return [
        {
            "row": point.row,
            "column": point.column,
            **{f"set {key}": plain(value) for key, value in point.settings.items()},
            "seeds": " ".join(map(str, point.seeds)),
            "chosen": point.chosen,
            "not_beaten": point.front,
            "validation": mean_over(point.validation, set()),
            "validation_kept": mean_over(point.validation_kept, set()),
            **{f"{name} {part}": entry[part] for name, entry in point.metrics.items() for part in ("mean", "std", "n")},
        }
        for point in table.points
    ]
