"""Fewer samples for what needs a table of all pairs."""

from __future__ import annotations

import torch


def thinned(count: int, at_most: int | None) -> torch.Tensor:
    """Positions of all `count` samples, or of `at_most` evenly spaced ones; (n,) int64. The same for both models."""
    if at_most is None or count <= at_most:
        return torch.arange(count)
    return torch.linspace(0, count - 1, at_most).round().long()
