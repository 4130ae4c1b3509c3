"""Attention maps over their images, before and after finetuning."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from riftcli.evaluation.candidates import Candidate
from riftcli.evaluation.evaluators.attention import head_rows
from riftcli.report.plots.canvas import subplots
from riftcli.runs.result_table import ResultTable, write_csv


def draw(path: Path, pictures: dict[str, Any], labels: Sequence[str], heads: bool) -> None:
    """A PNG: one row per image, the image, then each model's mean map over it; with `heads`, every head of every model.

    All maps of a row share one colour scale.
    """
    images, maps = pictures["images"], pictures["maps"]
    columns: list[tuple[str, Any]] = [(label, maps[label].mean(1)) for label in labels]
    if heads:
        columns += [(f"{label}\nhead {h + 1}", maps[label][:, h]) for label in labels for h in range(maps[label].shape[1])]
    figure, axes = subplots(len(images), len(columns) + 1, figsize=(1.7 * (len(columns) + 1), 1.8 * len(images)), squeeze=False)
    for i, line in enumerate(axes):
        picture = np.asarray(images[i].permute(1, 2, 0))
        line[0].imshow(picture)
        line[0].set_ylabel(Path(pictures["ids"][i]).name[-22:], fontsize=6)
        highest = max(float(m[i].max()) for _, m in columns)
        for axis, (title, values) in zip(line[1:], columns, strict=True):
            height, width = picture.shape[:2]
            axis.imshow(picture.mean(2), cmap="gray")
            axis.imshow(
                values[i], cmap="inferno", alpha=0.65, vmin=0, vmax=highest, extent=(-0.5, width - 0.5, height - 0.5, -0.5)
            )
            if i == 0:
                axis.set_title(title, fontsize=7)
        for axis in line:
            axis.set_xticks([])
            axis.set_yticks([])
    figure.savefig(path, dpi=110)


def plot_attention(report: Path, table: ResultTable, candidates: Sequence[Candidate]) -> list[Path]:
    """Beside a written report, the mean maps of the models that it is about; of a single one also every head, with numbers."""
    pictures, folder = table.pictures, report.parent
    own = [c for c in candidates if c.folder is not None and folder.is_relative_to(c.folder)] or list(candidates)
    labels = list(dict.fromkeys(label for c in own for label in (pictures["starts"][c.label], c.label)))
    draw(folder / "attention.png", pictures, labels, heads=False)
    if pictures["heads"] and len(own) == 1:
        draw(folder / "attention_heads.png", pictures, labels, heads=True)
        write_csv(folder / "attention_heads.csv", head_rows(pictures, labels))
    return [folder / "attention.png"]
