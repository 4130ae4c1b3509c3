"""Classes of images without labels: what `rift predict` does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import torch

from riftcli import dist
from riftcli.data.image_files import image_split
from riftcli.data.reading import bad_images, print_ignored
from riftcli.data.split import Split
from riftcli.errors import DataError, UsageError
from riftcli.evaluation.candidates import Candidate
from riftcli.evaluation.encoder import Encoder
from riftcli.evaluation.ensemble import load_members, mean_logits
from riftcli.protocols import Task
from riftcli.runs.result_table import write_cells

THRESHOLD = 0.5  # of a label's probability, for multi-label models


def predict_run(
    candidates: Sequence[Candidate], paths: Sequence[Path], encoder: Encoder
) -> tuple[list[str], list[dict[str, Any]]]:
    """(class names, one row per image): path, class, probability of every class, and of an unreadable one its `error` instead.

    Multi-label: `class` holds every label above 0.5, joined by `|`, possibly none. Raises UsageError for a model without class
    names, DataError where no image can be read. Several candidates are one model: their probabilities are averaged.
    """
    candidate, models = candidates[0], load_members(candidates, encoder.device)
    loaded = models[0]
    if not loaded.classes:
        raise UsageError(
            f"{candidate.label}: its folder names no classes (label_names in config.json), so there is nothing to predict"
        )
    reading = candidate.recipe.input
    whole = image_split(paths, reading, loaded.classes)
    print_ignored("images", whole.ignored, encoder.console)

    def encode(split: Split) -> torch.Tensor:
        return mean_logits([encoder.encode(model, split, reading, "images").logits for model in models], loaded.task)

    bad: dict[int, str] = {}
    split = whole
    try:
        if dist.world_size() > 1:  # one rank alone must not fail: the others would wait for it
            raise DataError("not tried")
        logits = encode(whole)
    except DataError:  # only now is every image read once more, to know which it was
        bad = bad_images(whole, reading, encoder.console)
        split = whole.take(i for i in range(len(whole)) if i not in bad)
        if len(split) == 0:
            raise DataError(f"none of the {len(whole)} images can be read: {next(iter(bad.values()))}") from None
        logits = encode(split)
    decided = dict(zip(split.ids, decide(logits, loaded.classes, loaded.task), strict=True))
    rows: list[dict[str, Any]] = []
    for i, name in enumerate(whole.ids):
        if i in bad:
            rows.append({"path": name, "class": "", "probabilities": [None] * len(loaded.classes), "error": bad[i]})
        else:
            labels, shares = decided[name]
            rows.append({"path": name, "class": "|".join(labels), "probabilities": list(shares.values()), "error": None})
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
    """CSV: path, class, p_<class> ..., and where an image could not be read `error`, with the reason."""
    failed = [row for row in rows if row["error"]]
    lines: list[list[object]] = [["path", "class", *[f"p_{name}" for name in classes], *(["error"] if failed else [])]]
    for row in rows:
        shares = ["" if p is None else f"{p:.6g}" for p in row["probabilities"]]
        lines.append([row["path"], row["class"], *shares, *([row["error"] or ""] if failed else [])])
    write_cells(file, lines)
