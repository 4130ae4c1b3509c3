"""Intervals of shares, and of whatever was drawn again and again."""

from __future__ import annotations

import math

import numpy as np

NORMAL_95 = 1.959963984540054  # the quantile of the normal distribution for 95 %, two-sided


def wilson_interval(share: float, n: int, z: float = NORMAL_95) -> tuple[float, float]:
    """(low, high) of a share that was seen in n independent trials (Wilson 1927): inside [0, 1], also for 0 and 1."""
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)


def percentile_interval(values: np.ndarray, level: float = 0.95) -> tuple[float | None, float | None]:
    """(low, high) of bootstrap values; draws in which the number is not defined (NaN) are left out, None below two of others."""
    known = values[np.isfinite(values)]
    if len(known) < 2:
        return None, None
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
