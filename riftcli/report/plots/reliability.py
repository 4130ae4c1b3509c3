"""The reliability diagram: how often a prediction of a certain confidence was right."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from riftcli.report.plots.canvas import subplots
from riftcli.runs.result_table import Row


def read_reliability(path: Path) -> list[Row]:
    """The rows of a reliability.csv; an empty cell is None."""
    with path.open(encoding="utf-8") as file:
        return [{key: float(value) if value else None for key, value in row.items()} for row in csv.DictReader(file)]


def plot_reliability(folder: Path, temperature: float | None = None) -> None:
    """FOLDER/reliability.png from the CSV beside it; with a temperature also the curve of reliability_scaled.csv."""
    curves = {"as trained": read_reliability(folder / "reliability.csv")}
    if temperature is not None:
        curves[f"temperature {temperature:.2f}"] = read_reliability(folder / "reliability_scaled.csv")
    figure, axis = subplots(figsize=(4.2, 4))
    draw_reliability(axis, curves)
    figure.savefig(folder / "reliability.png", dpi=120)


def draw_reliability(axis: Any, curves: dict[str, list[Row]], palette: dict[str, str] | None = None) -> None:
    """Accuracy over confidence, the size of a point growing with its bin; the diagonal is perfect. palette: name -> colour."""
    axis.plot([0, 1], [0, 1], color="0.6", lw=1, ls="--")
    for name, rows in curves.items():
        filled = [row for row in rows if row["count"]]
        total = sum(row["count"] for row in filled) or 1
        x, y = [row["confidence"] for row in filled], [row["accuracy"] for row in filled]
        (curve,) = axis.plot(x, y, lw=1.2, label=name, color=(palette or {}).get(name))
        sizes = [12 + 160 * row["count"] / total for row in filled]
        axis.scatter(x, y, s=sizes, alpha=0.6, color=curve.get_color())
    axis.set(xlabel="confidence", ylabel="share that is right", xlim=(0, 1), ylim=(0, 1))
    axis.grid(alpha=0.25)
    axis.legend(fontsize=8)
