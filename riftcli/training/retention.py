"""What the network still knows of data that it is not trained on: at the end of a run, and along the way."""

from __future__ import annotations

from typing import Any

from riftcli.evaluation import scores as evaluate
from riftcli.training.setup import Parts


def measure_retention(parts: Parts, before: bool = True) -> dict[str, Any]:
    """kNN before and after, and CKA between the two, on every retention set of the recipe; collective.

    before: False leaves out what does not change during a run.
    """
    recipe = parts.recipe
    entries: dict[str, Any] = {}
    for i, (query, bank) in enumerate(parts.retention):
        start = parts.references[f"retention/{i}"]
        now = parts.predict(query).features
        tables = None
        if bank is not None:
            tables = (parts.references[f"retention/{i}/bank"], parts.predict(bank).features)
        name = recipe.retention[i].name
        key = name if name not in entries else f"{name}-{i}"
        entries[key] = evaluate.retained(query, start, now, recipe.eval.knn_k, bank, tables, before)
    return entries


def trajectory_row(parts: Parts) -> dict[str, float | None]:
    """The same for one line of metrics.jsonl: `retention/<set>/knn` and `retention/<set>/cka`."""
    row = {}
    for name, entry in measure_retention(parts, before=False).items():
        row[f"retention/{name}/knn"], row[f"retention/{name}/cka"] = entry["knn_after"], entry["cka"]
    return row
