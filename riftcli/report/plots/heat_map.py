"""The picture of a layer x layer table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from riftcli.evaluation.candidates import Candidate
from riftcli.report.plots.canvas import subplots
from riftcli.runs.reader import read_json
from riftcli.runs.result_table import ResultTable, Row


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
    side = 0.42 * len({cell["layer"] for cell in cells})
    figure, axis = subplots(figsize=(side + 2.6, side + 1.8))
    draw_heat(axis, cells)
    figure.savefig(path, dpi=120)


def plot_similarity(report: Path, table: ResultTable, candidates: Sequence[Candidate]) -> list[Path]:
    """Beside a written report, a heat map of every model's layers, where they were measured."""
    cells = read_json(report).get("layers", [])
    models = list(dict.fromkeys((cell["model"], cell["data"]) for cell in cells))
    for model, data in models:
        name = "layers.png" if len(models) == 1 else f"layers-{model.replace('/', '-')}-{data}.png"
        draw_layers(report.parent / name, [cell for cell in cells if (cell["model"], cell["data"]) == (model, data)])
    return []
