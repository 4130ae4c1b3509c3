"""Standard errors of similarities in one pass: how much each sample moves the value (infinitesimal jackknife, Jaeckel 1972).

The value as a function of the samples' weights w has the derivative psi_i with respect to w_i at equal weights; the standard
error is the root of sum psi_i^2. It costs about as much as the value, where drawing subsamples costs their number times as much,
and is valid for many samples: terms of second order are left out.
"""

from __future__ import annotations

import math

import torch

from riftcli.functional.covariance import participation_ratio
from riftcli.functional.paired import Paired


def moved_by_pairs(value: float, ab: torch.Tensor, aa: torch.Tensor, bb: torch.Tensor) -> torch.Tensor:
    """What each sample moves a correlation of pairs by, sum_ij a_ij b_ij / (||a|| ||b||), through its own pairs; (N,).

    ab, aa, bb (N,): the sums over j of a_ij b_ij and so on; of tables without a mean, or doubly centred (how the centring moves
    with the weights is of second order).
    """
    norm_a, norm_b = aa.sum(), bb.sum()
    return 2 * (ab / (norm_a * norm_b).sqrt() - value / 2 * (aa / norm_a + bb / norm_b))


def error_of(psi: torch.Tensor) -> float | None:
    """Standard error from what each sample moves a value by, (N,); None for what is no number."""
    n = len(psi)
    error = math.sqrt(float(psi.double().square().sum()) * n / (n - 1))
    return error if math.isfinite(error) else None


# ---- values of moments: the mean moves with the weights too, but not to first order


def cka_error(pair: Paired) -> float | None:
    """Standard error of linear CKA; of many more samples than dimensions the debiased one moves in the same way."""
    (xx, xy, yy), own = (m.square().sum() for m in pair.unit_moments), pair.shares
    norm = (xx * yy).sqrt()
    return error_of(2 * own.xy / norm - xy / norm * (own.xx / xx + own.yy / yy))


def rank_ratio_error(pair: Paired) -> float | None:
    """Standard error of the participation ratio of Y's spectrum relative to X's: tr(S)^2 / ||S||^2 of each."""
    (xx, _, yy), own = pair.unit_moments, pair.shares
    logs = [
        2 * length / m.trace() - 2 * share / m.square().sum()
        for m, length, share in ((xx, own.length_x, own.xx), (yy, own.length_y, own.yy))
    ]
    return error_of(participation_ratio(yy) / participation_ratio(xx) * (logs[1] - logs[0]))
