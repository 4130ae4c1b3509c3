"""Curves of one run: loss parts, similarity and validation over the steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from riftcli.report.plots.canvas import subplots
from riftcli.runs.reader import read_rows
from riftcli.runs.result_table import write_csv

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
    steered = [row for row in rows if row["kind"] == "strength"]
    validation = [key for key in (evals[0] if evals else {}) if key not in ("kind", "step", "epoch", "split")]
    figure, axes = subplots(1, 4 if steered else 3, figsize=(17 if steered else 13, 3.6))
    if steered:
        _draw_strength(axes[3], steered)
    for axis, (title, names) in zip(axes[:3], [*PANELS.items(), ("validation", validation)], strict=True):
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
    write_csv(folder / "curves.csv", rows)


def _draw_strength(axis: Any, rows: list[dict[str, Any]]) -> None:
    """The strength that a rule chose, and what it was steered by: wanted and measured similarity, or both gradients."""
    steps = [row["step"] for row in rows]
    axis.plot(steps, [row["strength"] for row in rows], color="0.2", lw=1.4, label="strength")
    axis.set(title="strength", xlabel="step", ylabel="strength", yscale="log")
    axis.grid(alpha=0.25)
    other = axis.twinx()
    other.set_ylabel("CKA to the pretrained model" if "wanted" in rows[0] else "gradient norm", color="#d55e00")
    for name, style in (("cka_debiased", "-"), ("wanted", "--"), ("task_gradient", "-"), ("penalty_gradient", "--")):
        if name in rows[0]:
            other.plot(steps, [row[name] for row in rows], style, lw=1.2, label=name, color="#d55e00")
    lines = [*axis.lines, *other.lines]
    axis.legend(lines, [line.get_label() for line in lines], fontsize=8)
