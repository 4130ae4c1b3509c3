"""Which points are not beaten in both directions at once."""

from __future__ import annotations

from collections.abc import Sequence


def pareto_front(points: Sequence[tuple[float, float]]) -> list[bool]:
    """True for every (x, y) that no other point reaches or exceeds in both and exceeds in one; more is better."""
    return [
        not any(other[0] >= x and other[1] >= y and other != (x, y) for other in points)  # equal points stand together
        for x, y in points
    ]
