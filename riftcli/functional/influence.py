"""Standard errors of similarities in one pass: how much each sample moves the value (infinitesimal jackknife, Jaeckel 1972).

The value as a function of the samples' weights w has the derivative psi_i with respect to w_i at equal weights; the standard
error is the root of sum psi_i^2. It costs about as much as the value, where drawing subsamples costs their number times as much,
and is valid for many samples: terms of second order are left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from riftcli.functional.covariance import centre

CHUNK = 4096
Moments = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # X^T X (D, D), X^T Y (D, E), Y^T Y (E, E) of centred rows
OfMoments = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def moments(x: torch.Tensor, y: torch.Tensor) -> Moments:
    """Products of centred rows (N, D), (N, E); of chunks in the rows' own precision, their sums in fp64."""
    x, y = _centred(x), _centred(y)
    return _product(x, x), _product(x, y), _product(y, y)


def _product(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    parts = ((a.T @ b).double() for a, b in zip(x.split(CHUNK), y.split(CHUNK), strict=True))
    return torch.stack(list(parts)).sum(0)


def _centred(rows: torch.Tensor) -> torch.Tensor:
    rows = rows.detach()
    return (rows - rows.double().mean(0).to(rows.dtype)) if rows.dtype in (torch.float32, torch.float64) else centre(rows.float())


def error_of_moments(value: OfMoments, x: torch.Tensor, y: torch.Tensor) -> float | None:
    """Standard error of a value that is a function of the moments alone; (N, D), (N, E). None where it is not smooth there.

    The mean moves with the weights too, but not to first order.
    """
    leaves = [m.requires_grad_(True) for m in moments(x, y)]
    grads = torch.autograd.grad(value(*leaves), leaves, allow_unused=True)
    x, y = _centred(x), _centred(y)
    total = 0.0
    for a, b in zip(x.split(CHUNK), y.split(CHUNK), strict=True):
        psi = torch.zeros(len(a), dtype=torch.float64)
        for (one, other), grad in zip(((a, a), (a, b), (b, b)), grads, strict=True):
            if grad is not None:
                psi += ((one @ grad.to(one.dtype)) * other).sum(1).double()
        total += float(psi.square().sum())
    return _root(total, len(x))


def correlation_of_pairs(one: torch.Tensor, other: torch.Tensor) -> tuple[float, float | None]:
    """sum_ij a_ij b_ij / (||a|| ||b||) over pairs of samples, and its standard error; symmetric (N, N) without a mean."""
    value = (one * other).sum() / (torch.linalg.norm(one) * torch.linalg.norm(other))
    return float(value), error_of(moved_by_pairs(one, other))


def moved_by_pairs(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """What each sample moves that correlation by, through its pairs, (N,); of tables without a mean, or doubly centred (how the
    centring moves with the weights is of second order).
    """
    ab, aa, bb = (torch.einsum("ij,ij->i", *pair) for pair in ((one, other), (one, one), (other, other)))  # (N,)
    norm_a, norm_b = aa.sum(), bb.sum()
    value = ab.sum() / (norm_a * norm_b).sqrt()
    return 2 * (ab / (norm_a * norm_b).sqrt() - value / 2 * (aa / norm_a + bb / norm_b))


def error_of(psi: torch.Tensor) -> float | None:
    """Standard error from what each sample moves a value by, (N,); None for what is no number."""
    return _root(float(psi.double().square().sum()), len(psi))


def _root(total: float, n: int) -> float | None:
    error = math.sqrt(total * n / (n - 1)) if total >= 0 else math.nan
    return error if math.isfinite(error) else None


# ---- values of moments


def cka_of_moments(xx: torch.Tensor, xy: torch.Tensor, yy: torch.Tensor) -> torch.Tensor:
    """Linear CKA; of many more samples than dimensions the debiased one moves in the same way."""
    return xy.square().sum() / (xx.square().sum() * yy.square().sum()).sqrt()


def procrustes_of_moments(xx: torch.Tensor, xy: torch.Tensor, yy: torch.Tensor) -> torch.Tensor:
    """Distance after the best rotation, of rows of norm 1 (functional.alignment.procrustes_distance)."""
    return (2 - 2 * torch.linalg.svdvals(xy).sum() / (xx.trace() * yy.trace()).sqrt()).clamp_min(0).sqrt()


def rank_ratio_of_moments(xx: torch.Tensor, xy: torch.Tensor, yy: torch.Tensor) -> torch.Tensor:
    """Participation ratio of Y's spectrum relative to X's."""
    ratios = [m.trace() ** 2 / m.square().sum() for m in (xx, yy)]
    return ratios[1] / ratios[0]
