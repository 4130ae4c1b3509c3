"""Classes of images without labels: what `rift predict` does."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import torch

from riftcli.data.image_files import image_split
from riftcli.data.reading import sift
from riftcli.errors import UsageError
from riftcli.evaluation.candidates import Candidate
from riftcli.evaluation.encoder import Encoder
from riftcli.protocols import Task

THRESHOLD = 0.5  # of a label's probability, for multi-label models


def predict_run(candidate: Candidate, paths: Sequence[Path], encoder: Encoder) -> tuple[list[str], list[dict[str, Any]]]:
    """(class names, one row per readable image): path, class, probability of every class.

    Multi-label: `class` holds every label above 0.5, joined by `|`, possibly none. Unreadable images as `input.on_bad_image`
    says. Raises UsageError for a model without class names.
    """
    loaded = candidate.load(encoder.device)
    if not loaded.classes:
        raise UsageError(
            f"{candidate.label}: its folder names no classes (label_names in config.json), so there is nothing to predict"
        )
    reading = candidate.recipe.input
    split, _ = sift(image_split(paths, reading, loaded.classes), reading, encoder.console)
    logits = encoder.encode(loaded, split, reading, "images").logits
    rows = []
    for name, (labels, shares) in zip(split.ids, decide(logits, loaded.classes, loaded.task), strict=True):
        rows.append({"path": name, "class": "|".join(labels), "probabilities": list(shares.values())})
    return loaded.classes, rows


def decide(logits: torch.Tensor, classes: Sequence[str], task: Task) -> list[tuple[list[str], dict[str, float]]]:
    """([class], {class: probability}) of every image; multi-label: every label above 0.5, possibly none. logits (N, C)."""
    multilabel = task == "multilabel"
    wide = logits.double()
    found = []
    for values in (wide.sigmoid() if multilabel else wide.softmax(1)).tolist():
        shares = dict(zip(classes, values, strict=True))
        labels = [c for c, p in shares.items() if p > THRESHOLD] if multilabel else [max(shares, key=shares.__getitem__)]
        found.append((labels, shares))
    return found


def write_predictions(file: IO[str], classes: Sequence[str], rows: Sequence[dict[str, Any]]) -> None:
    """CSV: path, class, p_<class> ..."""
    writer = csv.writer(file)
    writer.writerow(["path", "class", *[f"p_{name}" for name in classes]])
    writer.writerows([row["path"], row["class"], *[f"{p:.6f}" for p in row["probabilities"]]] for row in rows)
