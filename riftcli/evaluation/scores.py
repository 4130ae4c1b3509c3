"""Features and logits of a split computed once, then the named metrics; and the report that holds them."""

from __future__ import annotations

import csv
import math
import resource
from pathlib import Path
from typing import Any

import torch

from riftcli import catalog, dist
from riftcli.data.classes import class_counts
from riftcli.data.loader import eval_loader
from riftcli.data.split import Split
from riftcli.data.splits import fingerprint
from riftcli.data.transforms import EvalTransform, Preprocessing
from riftcli.evaluation.features import Table, encode
from riftcli.functional.cka import cka
from riftcli.functional.knn import knn_accuracy
from riftcli.protocols import Predictions
from riftcli.runs.folder import now

SCHEMA = "rift.metrics/1"


def encode_split(
    model: torch.nn.Module,
    split: Split,
    preprocessing: Preprocessing,
    device: torch.device,
    batch_size: int,
    workers: int,
    tick: Any = lambda n: None,
) -> Table:
    """A split through a model, sharded over ranks; the same table on each."""
    batches = eval_loader(split, EvalTransform(preprocessing), batch_size, workers, dist.rank(), dist.world_size())
    return encode(model, batches, len(split), preprocessing, device, tick)


def predictions(split: Split, table: Table, reference: torch.Tensor | None) -> Predictions:
    """What metrics are computed from."""
    targets = torch.from_numpy(split.targets)
    return Predictions(table.logits, targets, table.features, split.classes, split.task, reference)


def score(names: list[str], seen: Predictions) -> dict[str, dict[str, Any]]:
    """The named metrics of a split, each with its direction and number of samples."""
    scores = {}
    for name in names:
        metric = catalog.component("metric", name)()
        result = metric.compute(seen)
        if result["value"] is not None and not math.isfinite(result["value"]):
            result |= {"value": None, "reason": "not a finite number: the logits or features are not"}
        scores[name] = {**result, "n": len(seen.targets), "higher_is_better": metric.higher_is_better}
    return scores


def retained(
    split: Split,
    before: torch.Tensor,
    after: torch.Tensor,
    k: int,
    bank: Split | None = None,
    bank_tables: Any = None,
    score_before: bool = True,
) -> dict[str, Any]:
    """What a set that was not trained on tells: kNN accuracy before and after, and CKA between the two.

    before, after: (N, D) features of the pretrained and the finetuned model. Without a bank the split is scored
    leave-one-out. bank_tables: (before, after) features of the bank. score_before: False leaves `knn_before` out.
    """
    targets = torch.from_numpy(split.targets)

    def accuracy(features: torch.Tensor, which: int) -> float:
        if bank is None:
            return knn_accuracy(features, targets, k=k)
        return knn_accuracy(bank_tables[which], torch.from_numpy(bank.targets), features, targets, k=k)

    start = {"knn_before": accuracy(before, 0)} if score_before else {}
    return {
        "n": len(split),
        "bank": "leave-one-out" if bank is None else bank.name,
        "k": k,
        **start,
        "knn_after": accuracy(after, 1),
        "cka": cka(before, after),
    }


def report(
    command: str, model: dict[str, Any], split: Split, seen: Predictions, metrics: list[str], data_name: str
) -> dict[str, Any]:
    """The body of metrics.json (schema rift.metrics/1), without timing."""
    scores = score(metrics, seen)
    per_class: dict[str, dict[str, Any]] = {name: {"n": n} for name, n in class_counts(split).items()}
    for name, entry in scores.items():
        for label, value in entry.pop("per_class", {}).items():
            per_class[label][name] = value
    return {
        "schema": SCHEMA,
        "command": command,
        "created": now(),
        "model": model,
        "data": {
            "name": data_name,
            "split": split.name,
            "n": len(split),
            "classes": split.classes,
            "class_counts": class_counts(split),
            "fingerprint": fingerprint(split),
        },
        "metrics": scores,
        "per_class": per_class,
        "confusion_matrix": confusion(seen),
    }


def exceptions(overlap: dict[str, int], skipped: dict[str, list[str]]) -> dict[str, Any]:
    """What a reader of the `data` part must know: samples that splits share, and images that were left out."""
    found: dict[str, Any] = {"overlap": overlap} if overlap else {}
    if skipped:
        found["skipped"] = {name: {"n": len(ids), "ids": ids} for name, ids in skipped.items()}
    return found


def confusion(seen: Predictions) -> dict[str, Any]:
    """Rows are true classes, columns predicted ones; per class TP, FP, FN, TN for multi-label data."""
    count = len(seen.classes)
    if seen.task == "multiclass":
        flat = seen.targets.long() * count + seen.logits.argmax(1)
        return {"classes": seen.classes, "counts": flat.bincount(minlength=count * count).view(count, count).tolist()}
    truth, guess = seen.targets.bool(), seen.logits > 0
    cells = {"tp": truth & guess, "fp": ~truth & guess, "fn": truth & ~guess, "tn": ~truth & ~guess}
    return {"classes": seen.classes, **{name: cell.sum(0).tolist() for name, cell in cells.items()}}


def write_tables(folder: Path, split: Split, seen: Predictions) -> None:
    """predictions.csv and confusion_matrix.csv."""
    folder.mkdir(parents=True, exist_ok=True)
    multiclass = seen.task == "multiclass"
    probabilities = seen.logits.softmax(1) if multiclass else seen.logits.sigmoid()
    with (folder / "predictions.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        if multiclass:
            writer.writerow(["id", "target", "predicted", *[f"p_{c}" for c in seen.classes]])
            guesses = seen.logits.argmax(1).tolist()
            for i, name in enumerate(split.ids):
                truth, guess = seen.classes[int(seen.targets[i])], seen.classes[guesses[i]]
                writer.writerow([name, truth, guess, *[f"{p:.6f}" for p in probabilities[i].tolist()]])
        else:
            writer.writerow(["id", *[f"target_{c}" for c in seen.classes], *[f"p_{c}" for c in seen.classes]])
            for i, name in enumerate(split.ids):
                writer.writerow([name, *seen.targets[i].tolist(), *[f"{p:.6f}" for p in probabilities[i].tolist()]])
    matrix = confusion(seen)
    with (folder / "confusion_matrix.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        if multiclass:
            writer.writerow(["true\\predicted", *seen.classes])
            writer.writerows([name, *row] for name, row in zip(seen.classes, matrix["counts"], strict=True))
        else:
            writer.writerow(["class", "tp", "fp", "fn", "tn"])
            columns = [matrix[key] for key in ("tp", "fp", "fn", "tn")]
            writer.writerows(zip(seen.classes, *columns, strict=True))


def peak_memory_bytes(device: torch.device) -> int:
    """Peak memory of this process: allocated on the GPU, or resident on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
