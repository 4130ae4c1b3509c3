"""Classes of a split and of a model, matched by name."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from riftcli.data.splits import with_classes
from riftcli.errors import DataError
from riftcli.protocols import Split


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
