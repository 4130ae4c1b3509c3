"""Accuracy against similarity, over the strengths of each method (RIFT paper Fig. A1)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from riftcli.report.figures import AXES, COLOURS
from riftcli.report.plots.canvas import subplots
from riftcli.runs.result_table import write_csv


def plot_pareto(points: Sequence[dict[str, Any]], path: Path, score: str, similarity: str) -> None:
    """Write a picture and, beside it, the numbers as CSV.

    points: row, column, x (similarity), y (score), their spreads x_std and y_std, note (the settings), chosen, front; a panel
    per column. A line joins the settings of a row; a ring marks the chosen one, dashes the points that none beats in both.
    """
    columns = list(dict.fromkeys(point["column"] for point in points))
    rows = list(dict.fromkeys(point["row"] for point in points))
    figure, axes = subplots(1, len(columns), figsize=(max(5.2, 4.4 * len(columns)), 4.2), squeeze=False)
    for axis, column in zip(axes[0], columns, strict=True):
        for i, row in enumerate(rows):
            own = sorted((p for p in points if (p["row"], p["column"]) == (row, column)), key=lambda p: p["x"])
            if not own:
                continue
            colour = COLOURS[i % len(COLOURS)]
            marker = "osD^vP*X"[i // len(COLOURS) % 8]
            axis.plot([p["x"] for p in own], [p["y"] for p in own], color=colour, lw=1, alpha=0.6)
            axis.errorbar(
                [p["x"] for p in own],
                [p["y"] for p in own],
                xerr=[p["x_std"] or 0 for p in own],
                yerr=[p["y_std"] or 0 for p in own],
                fmt=marker,
                ms=5,
                lw=0.8,
                color=colour,
                label=row,
            )
            for p in own:
                if p["chosen"] and len(own) > 1:
                    axis.plot(p["x"], p["y"], "o", ms=11, mfc="none", mec=colour, mew=1.2)
        front = sorted((p for p in points if p["column"] == column and p["front"]), key=lambda p: p["x"])
        axis.plot([p["x"] for p in front], [p["y"] for p in front], "--", color="0.4", lw=1, zorder=0, label="not beaten in both")
        axis.set(xlabel=AXES.get(similarity, similarity), ylabel=AXES.get(score, score))
        if len(columns) > 1:
            axis.set_title(column)
        axis.grid(alpha=0.25)
    axes[0][-1].legend(fontsize=7, loc="center left", bbox_to_anchor=(1.01, 0.5))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130, bbox_inches="tight")
    write_csv(path.with_suffix(".csv"), list(points))
