"""What the network still knows of data that it is not trained on: at the end of a run, and along the way."""

from __future__ import annotations

from typing import Any

import torch

from riftcli.data.split import Split
from riftcli.functional.cka import cka
from riftcli.functional.knn import knn_accuracy
from riftcli.functional.neighbours import mutual_knn
from riftcli.functional.probe import probe_accuracy
from riftcli.training.setup import Setup


def measure_retention(setup: Setup, before: bool = True) -> dict[str, Any]:
    """kNN and a linear probe before and after, CKA and shared neighbours between the two, on every retention set of the
    recipe; collective.

    before: False leaves out what does not change during a run, and what takes long.
    """
    recipe = setup.recipe
    entries: dict[str, Any] = {}
    for i, (query, bank) in enumerate(setup.data.retention):
        start = setup.pretrained.splits[f"retention/{i}"]
        now = setup.predict(query, again=not before).features
        tables = None
        if bank is not None:
            tables = (setup.pretrained.splits[f"retention/{i}/bank"], setup.predict(bank, again=not before).features)
        name = recipe.retention[i].name
        key = name if name not in entries else f"{name}-{i}"
        entries[key] = retained(query, start, now, recipe.eval.knn_k, bank, tables, before)
    return entries


def trajectory_row(setup: Setup) -> dict[str, float | None]:
    """The same for one line of metrics.jsonl: `retention/<set>/knn` and `retention/<set>/cka`."""
    row = {}
    for name, entry in measure_retention(setup, before=False).items():
        row[f"retention/{name}/knn"], row[f"retention/{name}/cka"] = entry["knn_after"], entry["cka"]
    return row


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
    leave-one-out. bank_tables: (before, after) features of the bank. score_before: False leaves out `knn_before`, the probe
    and the shared neighbours.
    """
    targets = torch.from_numpy(split.targets)

    def accuracy(features: torch.Tensor, which: int) -> float | None:
        if bank is None:
            return knn_accuracy(features, targets, k=k)
        return knn_accuracy(bank_tables[which], torch.from_numpy(bank.targets), features, targets, k=k)

    start = {"knn_before": accuracy(before, 0)} if score_before else {}
    whole = {}
    if score_before:  # once, at the end

        def probe(features: torch.Tensor, which: int) -> float | None:
            if bank is None:
                return probe_accuracy(features, targets)
            return probe_accuracy(bank_tables[which], torch.from_numpy(bank.targets), features, targets)

        whole = {"probe_before": probe(before, 0), "probe_after": probe(after, 1), "mutual_knn": mutual_knn(before, after)}
    return {
        "n": len(split),
        "bank": "leave-one-out" if bank is None else bank.name,
        "k": k,
        **start,
        "knn_after": accuracy(after, 1),
        "cka": cka(before, after),
        **whole,
    }
