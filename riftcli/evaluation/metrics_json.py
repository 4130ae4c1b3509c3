"""metrics.json (schema rift.metrics/1): the report on one split."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from riftcli.data.classes import class_counts
from riftcli.data.split import Split
from riftcli.data.splits import fingerprint
from riftcli.evaluation.scores import confusion, score
from riftcli.models.weights import sha256
from riftcli.protocols import Predictions
from riftcli.recipe import Recipe
from riftcli.runs.provenance import now

SCHEMA = "rift.metrics/1"


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


def eval_name(report: dict[str, Any]) -> str:
    """Folder of a report below eval/: <dataset>-<split>."""
    return f"{report['data']['name']}-{report['data']['split']}"


def model_entry(recipe: Recipe, vit: Any, weights: Path | None, epoch: int | None, trainable: int | None) -> dict[str, Any]:
    """The `model` part of a report."""
    return {
        "path": str(weights.parent) if weights else None,
        "architecture": vit.pretrained_cfg["architecture"],
        "method": recipe.method,
        "sha256": sha256(weights) if weights else None,
        "weights": "raw",
        "epoch": epoch,
        "params": sum(p.numel() for p in vit.parameters()),
        "trainable_params": trainable,
    }
