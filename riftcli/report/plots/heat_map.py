"""The picture of a layer x layer table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from riftcli.runs.result_table import Row


def draw_heat(axis: Any, cells: list[Row]) -> None:
    """CKA between all layers of two models; `cells` are rows of `layers.csv` of one model."""
    ours = list(dict.fromkeys(cell["reference_layer"] for cell in cells))
    theirs = list(dict.fromkeys(cell["layer"] for cell in cells))
    values = [float("nan") if cell["cka"] is None else cell["cka"] for cell in cells]
    grid = [values[i * len(theirs) : (i + 1) * len(theirs)] for i in range(len(ours))]
    image = axis.imshow(grid, vmin=0, vmax=1, cmap="viridis", origin="lower")
    axis.set_xticks(range(len(theirs)), theirs, rotation=90, fontsize=7)
    axis.set_yticks(range(len(ours)), ours, fontsize=7)
    axis.set(xlabel=cells[0]["model"], ylabel=cells[0]["reference"])
    axis.figure.colorbar(image, label="linear CKA")


def draw_layers(path: Path, cells: list[Row]) -> None:
    """The same as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    side = 0.42 * len({cell["layer"] for cell in cells})
    figure, axis = plt.subplots(figsize=(side + 2.6, side + 1.8), constrained_layout=True)
    draw_heat(axis, cells)
    figure.savefig(path, dpi=120)
    plt.close(figure)
