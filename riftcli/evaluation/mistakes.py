"""The answers that were wrong with most confidence: a table, and small pictures to look at."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from riftcli.data.split import Split
from riftcli.evaluation.metrics.many_classes import likeliest
from riftcli.files import writing
from riftcli.protocols import UNKNOWN, Predictions
from riftcli.runs.result_table import write_cells

COUNT, SIDE = 12, 96  # pictures, and pixels of their longer side
NAME, HEADER = "mistakes.csv", ("id", "picture", "target", "predicted", "confidence")


def write_mistakes(folder: Path, split: Split, seen: Predictions) -> None:
    """mistakes.csv and mistakes/*.jpg, the most confident first, in place of earlier ones."""
    pictures = folder / "mistakes"
    shutil.rmtree(pictures, ignore_errors=True)
    found = worst(seen)
    if found:
        pictures.mkdir(parents=True)
    with writing(folder / NAME) as file:
        write_cells(file, [HEADER])
        for k, (i, target, predicted, confidence) in enumerate(found, 1):
            path = pictures / f"{k:02d}.jpg"
            image = split.read(i).convert("RGB")
            image.thumbnail((SIDE, SIDE))
            image.save(path, "JPEG", quality=80)
            picture = path.relative_to(folder).as_posix()
            write_cells(file, [[split.ids[i], picture, target, predicted, f"{confidence:.4f}"]])


def worst(seen: Predictions, count: int = COUNT) -> list[tuple[int, str, str, float]]:
    """[(position, true class, given class, its probability)]; of several labels, one entry is one label of one image."""
    if seen.task == "multiclass":
        confidence, given = likeliest(seen.logits)
        order = torch.where(given != seen.targets, confidence, -1.0).argsort(descending=True, stable=True)[:count].tolist()
        names = seen.classes
        return [
            (i, names[int(seen.targets[i])], names[int(given[i])], float(confidence[i]))
            for i in order
            if given[i] != seen.targets[i]
        ]
    scores = seen.logits.double().sigmoid()
    wrong = ((scores > 0.5) != (seen.targets == 1)) & (seen.targets != UNKNOWN)
    sure = torch.where(wrong, torch.maximum(scores, 1 - scores), -1.0).flatten()
    entries = []
    for place in sure.argsort(descending=True, stable=True)[:count].tolist():
        i, c = divmod(place, len(seen.classes))
        if wrong[i, c]:
            has, name = bool(seen.targets[i, c] == 1), seen.classes[c]
            words = (name, f"not {name}")
            entries.append((i, words[not has], words[has], float(sure[place])))
    return entries
