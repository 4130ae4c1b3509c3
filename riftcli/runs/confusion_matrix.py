"""The confusion matrix of a report: every cell, or of many classes those that are not 0; of several labels TP, FP, FN, TN."""

from __future__ import annotations

from collections import Counter
from typing import Any

MANY = 500  # classes up to which every cell is written


def has_one_label(matrix: dict[str, Any]) -> bool:
    """Whether it is of images with one label each."""
    return "counts" in matrix or "cells" in matrix


def cells_of(matrix: dict[str, Any]) -> dict[str, tuple[int, int, int, int]]:
    """Class -> (true positives, false positives, false negatives, true negatives), each class against the others."""
    classes = matrix["classes"]
    if not has_one_label(matrix):
        return dict(zip(classes, zip(matrix["tp"], matrix["fp"], matrix["fn"], matrix["tn"], strict=True), strict=True))
    right, true, given = Counter[int](), Counter[int](), Counter[int]()
    for i, j, count in cells(matrix):
        true[i] += count
        given[j] += count
        if i == j:
            right[i] += count
    total = true.total()
    return {
        name: (right[i], given[i] - right[i], true[i] - right[i], total - true[i] - given[i] + right[i])
        for i, name in enumerate(classes)
    }


def cells(matrix: dict[str, Any]) -> list[tuple[int, int, int]]:
    """(true class, given class, images) of every cell that is not 0; classes by their number."""
    if "cells" in matrix:
        return [(i, j, count) for i, j, count in matrix["cells"]]
    return [(i, j, count) for i, line in enumerate(matrix["counts"]) for j, count in enumerate(line) if count]
