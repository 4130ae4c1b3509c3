"""From the features and logits of a split to the named metrics, and to tables of predictions, confusion and reliability."""

from __future__ import annotations

import math
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
    """Rows are true classes, columns predicted ones; per class TP, FP, FN, TN for multi-label data."""
    count = len(seen.classes)
    if seen.task == "multiclass":
        flat = seen.targets.long() * count + seen.logits.argmax(1)
        return {"classes": seen.classes, "counts": flat.bincount(minlength=count * count).view(count, count).tolist()}
    yes, no, guess = seen.targets == 1, seen.targets == 0, seen.logits > 0
    cells = {"tp": yes & guess, "fp": no & guess, "fn": yes & ~guess, "tn": no & ~guess}
    return {"classes": seen.classes, **{name: cell.sum(0).tolist() for name, cell in cells.items()}}


def write_tables(folder: Path, split: Split, seen: Predictions) -> None:
    """predictions.csv, confusion_matrix.csv, reliability.csv, and the most confident mistakes with pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    write_reliability(folder / "reliability.csv", seen)
    multiclass = seen.task == "multiclass"
    probabilities = seen.logits.softmax(1) if multiclass else seen.logits.sigmoid()
    shares = [[f"{p:.6f}" for p in row] for row in probabilities.tolist()]
    if multiclass:
        truths, guesses = seen.targets.tolist(), seen.logits.argmax(1).tolist()
        header = ["id", "target", "predicted", *[f"p_{c}" for c in seen.classes]]
        known = [[seen.classes[int(truth)], seen.classes[guess]] for truth, guess in zip(truths, guesses, strict=True)]
    else:
        header = ["id", *[f"target_{c}" for c in seen.classes], *[f"p_{c}" for c in seen.classes]]
        known = [["" if truth == UNKNOWN else truth for truth in row] for row in seen.targets.tolist()]
    with writing(folder / "predictions.csv") as file:
        write_cells(file, [header, *([name, *a, *b] for name, a, b in zip(split.ids, known, shares, strict=True))])
    matrix = confusion(seen)
    with writing(folder / "confusion_matrix.csv") as file:
        if multiclass:
            lines = [[name, *row] for name, row in zip(seen.classes, matrix["counts"], strict=True)]
            write_cells(file, [["true\\predicted", *seen.classes], *lines])
        else:
            columns = [matrix[key] for key in ("tp", "fp", "fn", "tn")]
            write_cells(file, [["class", "tp", "fp", "fn", "tn"], *zip(seen.classes, *columns, strict=True)])
    write_mistakes(folder, split, seen)


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
