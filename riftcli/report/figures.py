"""The pictures of a report page: each an SVG, with the numbers behind it as CSV."""

from __future__ import annotations

import base64
import io
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from riftcli.report.compare import Comparison
from riftcli.report.plots.canvas import subplots
from riftcli.report.plots.heat_map import draw_heat
from riftcli.report.plots.reliability import draw_reliability
from riftcli.report.records import Record
from riftcli.report.words import in_words
from riftcli.runs.result_table import Row, write_cells

COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f", "#000000"]  # told apart by everyone


@dataclass(frozen=True)
class Figure:
    """A picture and its numbers, both as data addresses: the page needs no file beside it."""

    title: str
    picture: str
    table: str
    note: str = ""


def figure(
    title: str,
    rows: Sequence[Row],
    draw: Callable[[Any], None],
    panels: int = 1,
    note: str = "",
    height: float = 3.6,
    fixed: bool = False,
) -> Figure:
    """Draw `panels` axes side by side; draw gets the list of axes. fixed: with the margins of a plain curve."""
    import matplotlib

    with matplotlib.rc_context({"svg.hashsalt": title, "font.size": 9}):  # the same page twice is the same file
        canvas, axes = subplots(1, panels, figsize=(max(4.4, 3.7 * panels), height), squeeze=False, fixed=fixed)
        draw(list(axes[0]))
        out = io.BytesIO()
        canvas.savefig(out, format="svg", metadata={"Date": None})
    return Figure(title, _address("image/svg+xml", out.getvalue()), _address("text/csv", csv_of(rows).encode()), note)


def _address(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def picture_address(content: bytes) -> str:
    """A PNG file as a data address."""
    return _address("image/png", content)


def read_picture(path: Path, run: Path) -> bytes | None:
    """A JPEG or PNG of a run; None for anything else: a page must not show what a run folder from elsewhere points at."""
    if not path.is_file() or not path.resolve().is_relative_to(run.resolve()):
        return None
    content = path.read_bytes()
    return content if content.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n")) else None


def csv_of(rows: Sequence[Row]) -> str:
    """Rows as CSV text."""
    out = io.StringIO()
    columns = list(dict.fromkeys(key for row in rows for key in row))
    write_cells(out, [columns, *([row.get(column) for column in columns] for row in rows)])
    return out.getvalue()


def colours(groups: Sequence[str]) -> dict[str, str]:
    """A colour per group, the same in all pictures of a page."""
    return {group: COLOURS[i % len(COLOURS)] for i, group in enumerate(groups)}


AXES = {"acc": "accuracy", "map": "mean average precision", "cka": "CKA to the pretrained model"}


def trade_off(table: Comparison, score: str, similarity: str, palette: dict[str, str]) -> Figure | None:
    """Score over similarity, one point per row with the spread over seeds (RIFT paper Fig. A1). None below two points."""
    rows: list[Row] = []
    for name, cells in table.rows.items():
        x, y = cells.get(similarity), cells.get(score)
        if x is not None and y is not None and x.mean is not None and y.mean is not None:
            rows.append({"run": name, "x": x.mean, "x_std": x.std, "y": y.mean, "y_std": y.std})
    if len(rows) < 2:
        return None

    def draw(axes: Any) -> None:
        for row in rows:
            color = palette.get(row["run"], "0.3")
            axes[0].errorbar(
                row["x"], row["y"], xerr=row["x_std"], yerr=row["y_std"], fmt="o", color=color, capsize=2, label=row["run"]
            )
        axes[0].set(xlabel=AXES.get(similarity, similarity), ylabel=AXES.get(score, score))
        axes[0].grid(alpha=0.25)
        axes[0].legend(fontsize=8)  # names beside the points would hide one another where methods are close

    names = [in_words(column)[0] for column in (score, similarity)]
    return figure(f"{names[0]} and {names[1]}: up and to the right is better", rows, draw, height=4.2)


def trade_off_svg(table: Comparison) -> bytes | None:
    """The same of a comparison's score and CKA, as an SVG file; None where they were not both measured, or on one row only."""
    score = next((c for c in ("acc or map (mean)", "map", "acc") if c in table.columns), None)
    kept = next((c for c in ("cka (mean)", "cka") if c in table.columns), None)
    found = trade_off(table, score, kept, colours(list(table.rows))) if score and kept else None
    return None if found is None else base64.b64decode(found.picture.partition(",")[2])


ENOUGH = 5  # runs of one row below which a curve of their density would be drawn from nothing


def spread_of_runs(groups: dict[str, list[Record]], column: str, palette: dict[str, str]) -> Figure | None:
    """One mark per run and, from ENOUGH runs on, their density (similarity-space paper Fig. 1b). None without repeats."""
    values = {group: [r.values[column] for r in members if column in r.values] for group, members in groups.items()}
    if max(map(len, values.values())) < 2:
        return None
    rows: list[Row] = [
        {"group": group, "run": r.label, "value": r.values[column]}
        for group, members in groups.items()
        for r in members
        if column in r.values
    ]

    def draw(axes: Any) -> None:
        import numpy as np
        from scipy.stats import gaussian_kde

        for place, (group, own) in enumerate(values.items()):
            axes[0].plot(own, [-place - 1] * len(own), "|", ms=11, mew=1.6, color=palette[group])
            if len(own) >= ENOUGH and len(set(own)) > 1:
                kernel = gaussian_kde(own)
                margin = 3 * float(kernel.covariance[0, 0]) ** 0.5
                grid = np.linspace(min(own) - margin, max(own) + margin, 200)  # its own: another row may be far wider
                density = kernel(grid)
                axes[0].fill_between(grid, len(values) * density / density.max(), color=palette[group], alpha=0.3, lw=0)
        axes[0].set(xlabel=column)
        axes[0].set_yticks([-place - 1 for place in range(len(values))], list(values), fontsize=7)

    note = f"One mark per run; a density, scaled to equal height, for rows of {ENOUGH} runs or more."
    return figure(f"{column} of every run", rows, draw, note=note, height=4.2)


CURVES = ["task_loss", "penalty_loss", "similarity_relative", "batch_cka", "trace_ratio"]


def curves(logs: dict[str, list[list[Row]]], palette: dict[str, str]) -> list[Figure]:
    """Loss parts and similarity over the steps, validation over the evaluations: the mean over seeds and their range.

    logs: group -> one list of metrics.jsonl rows per run.
    """
    every = [row for runs in logs.values() for rows in runs for row in rows]
    watched = dict.fromkeys(key for row in every if row["kind"] == "eval" for key in row)
    panels = [(name, "step") for name in CURVES if any(row.get(name) is not None for row in every)]
    panels += [(name, "eval") for name in watched if name not in ("kind", "step", "epoch", "split")]
    steered = dict.fromkeys(key for row in every if row["kind"] == "strength" for key in row)
    panels += [(name, "strength") for name in steered if name not in ("kind", "step", "epoch")]
    return [_curve(name, kind, logs, palette) for name, kind in panels]


def _curve(name: str, kind: str, logs: dict[str, list[list[Row]]], palette: dict[str, str]) -> Figure:
    rows: list[Row] = []
    for group, runs in logs.items():
        points: dict[int, list[float]] = {}
        for row in (row for log in runs for row in log if row["kind"] == kind and row.get(name) is not None):
            points.setdefault(row["step"], []).append(row[name])
        for step, found in sorted(points.items()):
            spread = {"mean": statistics.fmean(found), "low": min(found), "high": max(found)}
            rows.append({"curve": name, "run": group, "step": step, **spread})

    def draw(axes: Any) -> None:
        for group in logs:
            own = [row for row in rows if row["run"] == group]
            if own:
                steps = [row["step"] for row in own]
                axes[0].plot(steps, [r["mean"] for r in own], color=palette[group], lw=1.3, label=group)
                axes[0].fill_between(
                    steps, [r["low"] for r in own], [r["high"] for r in own], color=palette[group], alpha=0.15, lw=0
                )
        axes[0].set(xlabel="step")
        axes[0].grid(alpha=0.25)
        if len(logs) > 1:
            axes[0].legend(fontsize=6)

    title = {"step": "{}", "eval": "validation {}", "strength": "strength rule: {}"}[kind].format(name)
    return figure(title, rows, draw, height=3.2, fixed=True)


def reliability(curves_by_run: dict[str, list[Row]], palette: dict[str, str]) -> Figure:
    """Accuracy over confidence of every run."""
    rows = [{"run": name, **row} for name, own in curves_by_run.items() for row in own]
    return figure("Reliability", rows, lambda axes: draw_reliability(axes[0], curves_by_run, palette), height=4.2)


def confusion(name: str, matrix: dict[str, Any]) -> Figure:
    """Shares of every true class that were predicted as each class."""
    classes, counts = matrix["classes"], matrix["counts"]
    shares = [[cell / max(1, sum(line)) for cell in line] for line in counts]
    rows = [{"true": t, **dict(zip(classes, line, strict=True))} for t, line in zip(classes, counts, strict=True)]
    ticks = range(len(classes))

    def draw(axes: Any) -> None:
        axes[0].imshow(shares, vmin=0, vmax=1, cmap="Blues")
        axes[0].set_xticks(ticks, classes, rotation=90, fontsize=6)
        axes[0].set_yticks(ticks, classes, fontsize=6)
        axes[0].set(xlabel="predicted", ylabel="true")
        if len(classes) <= 12:
            for i in ticks:
                for j in ticks:
                    axes[0].text(
                        j, i, counts[i][j], ha="center", va="center", fontsize=6, color="w" if shares[i][j] > 0.5 else "k"
                    )

    return figure(f"Confusion matrix of {name}", rows, draw, height=min(9.0, 2.2 + 0.22 * len(classes)))


PLANES = {"pca": "PCA", "tsne": "t-SNE"}


def scatter_maps(name: str, points: Sequence[Row]) -> list[Figure]:
    """The samples before and after on two planes, by class (RIFT paper Fig. 4, RepSim paper Fig. 4)."""
    classes = list(dict.fromkeys(point["class"] for point in points))
    tone = {c: COLOURS[i % len(COLOURS)] for i, c in enumerate(classes)}

    def on(plane: str) -> Figure:
        def draw(axes: Any) -> None:
            for axis, when in zip(axes, ("before", "after"), strict=True):
                own = [p for p in points if p["when"] == when]
                other = [p for p in points if p["when"] != when]
                axis.scatter([p[f"{plane}_x"] for p in other], [p[f"{plane}_y"] for p in other], s=4, color="0.88")
                colour = [tone[p["class"]] for p in own]
                axis.scatter([p[f"{plane}_x"] for p in own], [p[f"{plane}_y"] for p in own], s=7, c=colour, alpha=0.75, lw=0)
                axis.set(title=when, xticks=[], yticks=[])

        kept = [{k: v for k, v in p.items() if not k.endswith(("_x", "_y")) or k.startswith(plane)} for p in points]
        return figure(f"{PLANES[plane]} map of {name}", kept, draw, 2, "Both models on one plane, the other one in grey.", 3.4)

    return [on(plane) for plane in PLANES]


def layers(name: str, cells: list[Row]) -> Figure:
    """CKA of every layer before with every layer after."""
    return figure(f"Layers of {name}", cells, lambda axes: draw_heat(axes[0], cells), height=4.0)


def groups_of(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Records by group, in order."""
    found: dict[str, list[Record]] = {}
    for record in records:
        found.setdefault(record.group, []).append(record)
    return found
