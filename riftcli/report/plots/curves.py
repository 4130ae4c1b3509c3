"""Curves of one run: loss parts, similarity and validation over the steps."""

from __future__ import annotations

import csv
from pathlib import Path

from riftcli.report.plots.canvas import subplots
from riftcli.runs.reader import read_rows

PANELS = {
    "loss": ["loss", "task_loss", "penalty_loss"],
    "similarity": ["similarity_relative", "spectral_bound", "batch_cka", "trace_ratio", "q_distance"],
}


def plot_run(run: Path) -> None:
    """Write plots/curves.png and the numbers behind it, plots/curves.csv."""
    rows = read_rows(run)
    steps = [row for row in rows if row["kind"] == "step"]
    evals = [row for row in rows if row["kind"] == "eval"]
    if not steps:
        return
    folder = run / "plots"
    folder.mkdir(exist_ok=True)
    validation = [key for key in (evals[0] if evals else {}) if key not in ("kind", "step", "epoch", "split")]
    figure, axes = subplots(1, 3, figsize=(13, 3.6))
    for axis, (title, names) in zip(axes, [*PANELS.items(), ("validation", validation)], strict=True):
        source = evals if title == "validation" else steps
        for name in names:
            points = [(row["step"], row[name]) for row in source if row.get(name) is not None]
            if points:
                axis.plot(*zip(*points, strict=True), label=name, marker="o" if title == "validation" else None, lw=1.4)
        axis.set(title=title, xlabel="step")
        axis.grid(alpha=0.25)
        if axis.lines:
            axis.legend(fontsize=8)
    figure.savefig(folder / "curves.png", dpi=120)
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with (folder / "curves.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
