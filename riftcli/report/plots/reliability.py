"""The reliability diagram: how often a prediction of a certain confidence was right."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from riftcli.evaluation.scores import reliability_rows
from riftcli.protocols import Predictions
from riftcli.runs.result_table import Row, write_csv


def write_reliability(folder: Path, seen: Predictions, temperature: float | None = None) -> None:
    """FOLDER/reliability.csv and .png; with a temperature also reliability_scaled.csv."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    folder.mkdir(parents=True, exist_ok=True)
    rows = reliability_rows(seen)
    write_csv(folder / "reliability.csv", rows)
    curves = {"as trained": rows}
    if temperature is not None:
        curves[f"temperature {temperature:.2f}"] = scaled = reliability_rows(replace(seen, logits=seen.logits / temperature))
        write_csv(folder / "reliability_scaled.csv", scaled)
    figure, axis = plt.subplots(figsize=(4.2, 4), constrained_layout=True)
    draw_reliability(axis, curves)
    figure.savefig(folder / "reliability.png", dpi=120)
    plt.close(figure)


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
