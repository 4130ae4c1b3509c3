"""The picture of a layer x layer table."""

from __future__ import annotations

from pathlib import Path

from riftcli.report.table import Row


def draw_layers(path: Path, cells: list[Row]) -> None:
    """A PNG of CKA between all layers of two models; `cells` are rows of `layers.csv` of one model."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import numpy as np

    ours = list(dict.fromkeys(cell["reference_layer"] for cell in cells))
    theirs = list(dict.fromkeys(cell["layer"] for cell in cells))
    values = np.array([np.nan if cell["cka"] is None else cell["cka"] for cell in cells]).reshape(len(ours), len(theirs))
    figure, axis = plt.subplots(figsize=(0.42 * len(theirs) + 2.6, 0.42 * len(ours) + 1.8), constrained_layout=True)
    image = axis.imshow(values, vmin=0, vmax=1, cmap="viridis", origin="lower")
    axis.set_xticks(range(len(theirs)), theirs, rotation=90, fontsize=8)
    axis.set_yticks(range(len(ours)), ours, fontsize=8)
    axis.set(xlabel=cells[0]["model"], ylabel=cells[0]["reference"])
    figure.colorbar(image, label="linear CKA")
    figure.savefig(path, dpi=120)
    plt.close(figure)
