"""Classes of a split and of a model, matched by name."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from riftcli.data.split import Split
from riftcli.errors import DataError


def match_classes(split: Split, trained: list[str], allow_missing: bool = False) -> Split:
    """The split with targets in the order of the trained classes, matched by name; raise DataError when they differ."""
    if split.classes == trained:
        return split
    if allow_missing and set(split.classes) < set(trained):
        return with_classes(trained, split, allow_missing)
    if sorted(split.classes) != sorted(trained):
        missing = [c for c in trained if c not in split.classes]
        extra = [c for c in split.classes if c not in trained]
        raise DataError(
            f"split '{split.name}': classes differ from those the model was trained on: "
            f"missing {missing[:5] or 'none'}, unknown {extra[:5] or 'none'}"
        )
    order = [split.classes.index(name) for name in trained]
    if split.task == "multilabel":
        return replace(split, classes=trained, targets=split.targets[:, order])
    return replace(split, classes=trained, targets=np.argsort(order)[split.targets])


def with_classes(trained: list[str], other: Split, allow_missing: bool) -> Split:
    """The split with the training classes; raise DataError when it has others, in another order, or too few."""
    if other.classes == trained:
        return other
    missing = [c for c in trained if c not in other.classes]
    extra = [c for c in other.classes if c not in trained]
    if not missing and not extra:
        raise DataError(
            f"split '{other.name}': same classes as in training but in another order "
            f"({', '.join(other.classes[:5])}...); fix the order with data.classes"
        )
    if extra or not allow_missing:
        remedy = "" if extra else ", or set data.allow_missing_classes: true"
        raise DataError(
            f"split '{other.name}': classes differ from training: missing {missing[:5] or 'none'}, "
            f"unknown {extra[:5] or 'none'}; every split needs the same classes{remedy}"
        )
    position = np.asarray([trained.index(name) for name in other.classes])
    if other.task == "multilabel":
        targets = np.zeros((len(other), len(trained)), dtype=other.targets.dtype)
        targets[:, position] = other.targets
        return replace(other, classes=trained, targets=targets)
    return replace(other, classes=trained, targets=position[other.targets])


def class_counts(split: Split) -> dict[str, int]:
    """Samples (positives, for multi-label) per class."""
    multilabel = split.task == "multilabel"
    counts = (split.targets == 1).sum(0) if multilabel else np.bincount(split.targets, minlength=len(split.classes))
    return {name: int(count) for name, count in zip(split.classes, counts, strict=True)}
