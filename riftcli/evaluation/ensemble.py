"""Several runs of one task as one model: the mean of their probabilities (Lakshminarayanan et al. 2017, Sec. 2.4)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from riftcli.errors import UsageError
from riftcli.evaluation.candidates import Candidate, LoadedModel, open_runs
from riftcli.protocols import Task

SMALLEST = 1e-30  # of a mean probability: its logarithm stays finite


def members_of(run: Path, overrides: Sequence[str]) -> list[Candidate]:
    """The runs below a folder of seeds or folds; raise UsageError for fewer than two."""
    found = open_runs([run], overrides)
    if len(found) < 2:
        raise UsageError(f"{run}: --ensemble averages several runs; name a folder of --repeats or --folds")
    return found


def load_members(members: Sequence[Candidate], device: torch.device) -> list[LoadedModel]:
    """The models, which must have the same classes in the same order; raise UsageError."""
    loaded = [member.load(device) for member in members]
    for member, model in zip(members, loaded, strict=True):
        if (model.classes, model.task) != (loaded[0].classes, loaded[0].task):
            raise UsageError(f"{member.label}: has other classes than {members[0].label}; an ensemble is of runs of one task")
    return loaded


def mean_logits(parts: Sequence[torch.Tensor], task: Task) -> torch.Tensor:
    """Logits (N, C) whose probabilities are the mean of those of every part (N, C)."""
    if len(parts) == 1:
        return parts[0]
    stacked = torch.stack([part.double() for part in parts])
    if task == "multilabel":
        mean = stacked.sigmoid().mean(0)
        return (mean.clamp_min(SMALLEST).log() - (1 - mean).clamp_min(SMALLEST).log()).to(parts[0].dtype)
    return stacked.softmax(2).mean(0).clamp_min(SMALLEST).log().to(parts[0].dtype)


def ensemble_entry(members: Sequence[Candidate], loaded: Sequence[LoadedModel], folder: Path) -> dict[str, Any]:
    """The `model` part of a report: that of the first, with the members beside it and no digest of one file."""
    entry = members[0].entry(loaded[0])
    label = f"{members[0].group} (ensemble of {len(members)})"
    weights = [str(member.weights.parent) for member in members if member.weights is not None]
    return {**entry, "label": label, "path": str(folder), "sha256": None, "epoch": None, "members": weights}
