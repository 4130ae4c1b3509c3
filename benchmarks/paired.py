"""Ratios of two pieces of code: interleaved, one thread, process time, the median of the paired ratios."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch


def ratio(name: str, a: Callable[[], object], b: Callable[[], object], target: float, pairs: int = 15) -> float:
    """Print and return median(a / b) with both absolute medians; `target` is what it should not exceed."""
    torch.set_num_threads(1)
    for warm in (a, b, a, b):
        warm()
    times: list[tuple[float, float]] = []
    for i in range(pairs):
        first, second = (a, b) if i % 2 else (b, a)  # neither always runs on the other's warm cache
        marks = [time.process_time()]
        for work in (first, second):
            work()
            marks.append(time.process_time())
        one, two = marks[1] - marks[0], marks[2] - marks[1]
        times.append((one, two) if i % 2 else (two, one))
    ratios = sorted(x / y for x, y in times)
    median = statistics.median(ratios)
    low, high = ratios[len(ratios) // 4], ratios[-len(ratios) // 4]
    left, right = (1e3 * statistics.median(column) for column in zip(*times, strict=True))
    verdict = "ok" if median <= target else "MISSED"
    print(f"{name}: {median:.3f} (quartiles {low:.3f}-{high:.3f}; {left:.2f} / {right:.2f} ms), target <= {target}: {verdict}")
    return median
