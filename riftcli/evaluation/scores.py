"""From the features and logits of a split to the named metrics, and to tables of predictions, confusion and reliability."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from riftcli import catalog
from riftcli.data.split import Split
from riftcli.evaluation.features import FeatureTable
from riftcli.evaluation.metrics.calibration import ExpectedCalibrationError, confidences
from riftcli.evaluation.mistakes import write_mistakes
from riftcli.files import writing
from riftcli.functional.calibration import reliability
from riftcli.protocols import UNKNOWN, Predictions
from riftcli.runs.confusion_matrix import MANY
from riftcli.runs.result_table import Row, write_cells, write_csv


def predictions(split: Split, table: FeatureTable, pretrained: torch.Tensor | None, group: str | None = None) -> Predictions:
    """What metrics are computed from. group: the column that worst_group looks at."""
    targets = torch.from_numpy(split.targets)
    groups = split.groups.get(group) if group else None
    return Predictions(table.logits, targets, table.features, split.classes, split.task, pretrained, groups)


def score(names: list[str], seen: Predictions) -> dict[str, dict[str, Any]]:
    """The named metrics of a split, each with its direction and number of samples."""
    tables = [table for table in (seen.logits, seen.features, seen.pretrained) if table is not None]
    finite = all(bool(table.isfinite().all()) for table in tables)
    scores = {}
    for name in names:
        metric = catalog.component("metric", name)()
        # of NaN every comparison is false, so that accuracy and ranks would be numbers all the same
        result: dict[str, Any] = {"value": None, "reason": "the logits or features are not finite"}
        result = metric.compute(seen) if finite else result
        if result["value"] is not None and not math.isfinite(result["value"]):
            result |= {"value": None, "reason": "not a finite number"}
        scores[name] = {**result, "n": len(seen.targets), "higher_is_better": metric.higher_is_better}
    return scores


def confusion(seen: Predictions) -> dict[str, Any]:
    """Rows are true classes, columns predicted ones, of more than 500 classes [true, predicted, images] where there are any; per
    class TP, FP, FN, TN for multi-label data.
    """
    count = len(seen.classes)
    if seen.task == "multiclass":
        flat = seen.targets.long() * count + seen.logits.argmax(1)
        if count <= MANY:
            return {"classes": seen.classes, "counts": flat.bincount(minlength=count * count).view(count, count).tolist()}
        places, images = flat.unique(return_counts=True)
        return {"classes": seen.classes, "cells": torch.stack([places // count, places % count, images], 1).tolist()}
    yes, no, guess = seen.targets == 1, seen.targets == 0, seen.logits > 0
    cells = {"tp": yes & guess, "fp": no & guess, "fn": yes & ~guess, "tn": no & ~guess}
    return {"classes": seen.classes, **{name: cell.sum(0).tolist() for name, cell in cells.items()}}


def write_tables(folder: Path, split: Split, seen: Predictions) -> None:
    """predictions.csv, confusion_matrix.csv, reliability.csv, and the most confident mistakes with pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    write_reliability(folder / "reliability.csv", seen)
    with writing(folder / "predictions.csv") as file:
        write_cells(file, _prediction_lines(split, seen))
    with writing(folder / "confusion_matrix.csv") as file:
        write_cells(file, _confusion_lines(confusion(seen)))
    write_mistakes(folder, split, seen)


LIKELIEST = 5  # classes that predictions.csv names of each image, where there are too many for a column each


def _prediction_lines(split: Split, seen: Predictions) -> Iterator[list[Any]]:
    """One line per image: its class, the predicted one, and the probability of every class, of many of the likeliest five."""
    names, many = seen.classes, len(seen.classes) > MANY
    if seen.task == "multilabel":
        yield ["id", *[f"target_{c}" for c in names], *[f"p_{c}" for c in names]]
    elif many:
        likeliest = [column for k in range(1, LIKELIEST + 1) for column in (f"class_{k}", f"p_{k}")]
        yield ["id", "target", "predicted", "p_target", *likeliest]
    else:
        yield ["id", "target", "predicted", *[f"p_{c}" for c in names]]
    for start in range(0, len(split.ids), CHUNK):
        own, targets = split.ids[start : start + CHUNK], seen.targets[start : start + CHUNK]
        logits = seen.logits[start : start + CHUNK]
        if seen.task == "multilabel":
            for name, truth, row in zip(own, targets.tolist(), logits.sigmoid().tolist(), strict=True):
                yield [name, *("" if t == UNKNOWN else t for t in truth), *(f"{p:.6g}" for p in row)]
            continue
        probabilities, guesses = logits.softmax(1), logits.argmax(1).tolist()
        truths = [names[int(truth)] for truth in targets]
        known = zip(own, truths, (names[guess] for guess in guesses), strict=True)
        if many:
            places = logits.argsort(dim=1, descending=True, stable=True)[:, :LIKELIEST]  # of equal ones the first, as predicted
            best = probabilities.gather(1, places).tolist()
            of_target = probabilities.gather(1, targets.long()[:, None])[:, 0].tolist()
            for line, p, values, likely in zip(known, of_target, best, places.tolist(), strict=True):
                pairs = (cell for c, v in zip(likely, values, strict=True) for cell in (names[c], f"{v:.6g}"))
                yield [*line, f"{p:.6g}", *pairs]
        else:
            for line, row in zip(known, probabilities.tolist(), strict=True):
                yield [*line, *(f"{p:.6g}" for p in row)]


CHUNK = 1024  # images at a time


def _confusion_lines(matrix: dict[str, Any]) -> Iterator[list[Any]]:
    classes = matrix["classes"]
    if "counts" in matrix:
        yield ["true\\predicted", *classes]
        yield from ([name, *row] for name, row in zip(classes, matrix["counts"], strict=True))
    elif "cells" in matrix:
        yield ["true", "predicted", "images"]
        yield from ([classes[i], classes[j], count] for i, j, count in matrix["cells"])
    else:
        yield ["class", "tp", "fp", "fn", "tn"]
        yield from (list(line) for line in zip(classes, *(matrix[key] for key in ("tp", "fp", "fn", "tn")), strict=True))


BINS = ExpectedCalibrationError.bins


def reliability_rows(seen: Predictions) -> list[Row]:
    """One row per bin of equal width; for multi-label data all labels together."""
    pairs = confidences(seen)
    found = reliability(torch.cat([pair[0] for pair in pairs]), torch.cat([pair[1] for pair in pairs]), BINS)
    return [
        {
            "low": float(found.edges[i]),
            "high": float(found.edges[i + 1]),
            "count": int(found.count[i]),
            "confidence": float(found.confidence[i]) if found.count[i] else None,
            "accuracy": float(found.accuracy[i]) if found.count[i] else None,
        }
        for i in range(len(found.count))
    ]


def write_reliability(path: Path, seen: Predictions) -> None:
    """The rows of the reliability diagram as CSV."""
    write_csv(path, reliability_rows(seen))
