"""metrics.json (schema rift.metrics/1): the one place where the parts of a report on a split are put together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from riftcli.data.classes import class_counts
from riftcli.data.split import Split
from riftcli.data.splits import fingerprint
from riftcli.escaping import file_name
from riftcli.evaluation.scores import confusion, score
from riftcli.models.published import sha256
from riftcli.protocols import Predictions
from riftcli.runs.provenance import now, peak_memory_bytes

SCHEMA = "rift.metrics/1"
NO_TEST = "there is no test split: these images also chose the weights, so the numbers are too good"


def split_report(
    command: str,
    split: Split,
    seen: Predictions,
    metrics: list[str],
    *,
    model: dict[str, Any],
    data_name: str,
    overlap: dict[str, int],
    skipped: dict[str, list[str]],
    timing: dict[str, Any],
    env: dict[str, Any],
    chose_weights: bool = False,
) -> dict[str, Any]:
    """The whole report. overlap, skipped: samples that splits share, images that were left out; told where there are any.

    chose_weights: of a recipe without a test split, the images that the numbers are of also chose the weights.
    """
    scores = score(metrics, seen)
    per_class: dict[str, dict[str, Any]] = {name: {"n": n} for name, n in class_counts(split).items()}
    for name, entry in scores.items():
        for label, value in entry.pop("per_class", {}).items():
            per_class[label][name] = value
    data = {
        "name": data_name,
        "split": split.name,
        "n": len(split),
        "classes": split.classes,
        "class_counts": class_counts(split),
        "fingerprint": fingerprint(split),
    }
    if chose_weights:
        data |= {"chose_weights": True, "note": NO_TEST}
    if overlap:
        data["overlap"] = overlap
    if skipped:
        data["skipped"] = {name: {"n": len(ids), "ids": ids} for name, ids in skipped.items()}
    return {
        "schema": SCHEMA,
        "command": command,
        "created": now(),
        "model": model,
        "data": data,
        "metrics": scores,
        "per_class": per_class,
        "confusion_matrix": confusion(seen),
        "timing": timing,
        "env": env,
    }


def model_part(
    vit: Any,
    method: dict[str, Any],
    weights: Path | None,
    epoch: int | None,
    trainable: int | None = None,
    label: str | None = None,
    path: str | None = None,
) -> dict[str, Any]:
    """Which model: its weights file (path and digest), architecture, method and size. path: where there is no file."""
    return {
        **({} if label is None else {"label": label}),
        "path": str(weights.parent) if weights else path,
        "architecture": vit.pretrained_cfg["architecture"],
        "method": method,
        "sha256": sha256(weights) if weights else None,
        "weights": "raw",
        "epoch": epoch,
        "params": sum(p.numel() for p in vit.parameters()),
        "trainable_params": trainable,
    }


def timing_part(device: torch.device, images_per_second: float | None, **seconds: float) -> dict[str, Any]:
    """What it cost; seconds: `seconds` of the whole, `train_seconds` of the loop."""
    return {**seconds, "images_per_second": images_per_second, "peak_memory_bytes": peak_memory_bytes(device)}


def eval_name(report: dict[str, Any]) -> str:
    """Folder of a report below eval/: <dataset>-<split>."""
    return file_name(f"{report['data']['name']}-{report['data']['split']}")
