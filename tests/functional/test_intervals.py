"""Intervals of shares against statsmodels' formula by hand and against simulated coverage."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import brentq

from riftcli.functional.intervals import NORMAL_95, wilson_interval


@pytest.mark.parametrize(("share", "n"), [(0.0, 10), (0.3, 10), (0.5, 200), (0.97, 1000), (1.0, 5)])
def test_the_ends_are_where_the_score_test_turns(share, n):
    def distance(p: float) -> float:
        return (share - p) ** 2 - NORMAL_95**2 * p * (1 - p) / n

    low, high = wilson_interval(share, n)
    if share > 0:
        assert low == pytest.approx(brentq(distance, 1e-12, share - 1e-9), abs=1e-9)
    else:
        assert low == pytest.approx(0, abs=1e-12)
    if share < 1:
        assert high == pytest.approx(brentq(distance, share + 1e-9, 1 - 1e-12), abs=1e-9)
    else:
        assert high == pytest.approx(1, abs=1e-12)


def test_it_covers_the_truth():
    rng = np.random.default_rng(0)
    found = [wilson_interval(rng.binomial(60, 0.9) / 60, 60) for _ in range(4000)]
    assert np.mean([low <= 0.9 <= high for low, high in found]) == pytest.approx(0.95, abs=0.02)
