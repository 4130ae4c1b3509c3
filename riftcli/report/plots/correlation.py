"""Similarity against what was kept, over many runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from riftcli.evaluation.candidates import Candidate
from riftcli.report.plots.canvas import subplots
from riftcli.runs.result_table import ResultTable


def plot_correlation(report: Path, table: ResultTable, candidates: Sequence[Candidate]) -> list[Path]:
    """correlate.png beside a written report: one panel per y, single points, bin means and their line."""
    x = table.settings["x"]
    figure, axes = subplots(1, len(table.rows), figsize=(4.2 * len(table.rows), 3.6), squeeze=False)
    for axis, row in zip(axes[0], table.rows, strict=True):
        y = row["y"]
        single = [(p[x], p[y]) for p in table.tables["single"] if p.get(x) is not None and p.get(y) is not None]
        means = [(c["x_mean"], c["y_mean"]) for c in table.tables["binned"] if c["y"] == y]
        axis.scatter(*zip(*single, strict=True), s=8, color="0.3", alpha=0.5, label="evaluations")
        axis.scatter(*zip(*means, strict=True), s=36, color="tab:red", label="means of bins")
        if row["binned_r"] is not None:
            ends = [min(m[0] for m in means), max(m[0] for m in means)]
            axis.plot(ends, [row["binned_intercept"] + row["binned_slope"] * e for e in ends], color="tab:red", lw=1)
        title = "no line" if row["binned_r"] is None else f"r = {row['binned_r']:.2f} ({row['bins']} bins)"
        axis.set(xlabel=x, ylabel=y, title=title)
        axis.grid(alpha=0.25)
        axis.legend(fontsize=7)
    figure.savefig(report.with_name("correlate.png"), dpi=120)
    return [report.with_name("correlate.png")]
