"""CKA with a Gaussian kernel: similarity of neighbourhoods rather than of all distances (Kornblith et al. 2019, Sec. 4)."""

from __future__ import annotations

import numpy as np
import torch

from riftcli.functional.covariance import centre
from riftcli.functional.influence import error_of, moved_by_pairs
from riftcli.functional.rounding import is_constant


def rbf_gram(features: torch.Tensor, bandwidth: float = 0.8) -> torch.Tensor:
    """exp(-|a - b|^2 / (2 s^2)) with s = bandwidth * median distance between samples, in fp64; (N, D) -> (N, N)."""
    rows = centre(features.detach().double())
    squares, n = rows.square().sum(1), len(rows)
    distances = (rows @ rows.T).mul_(-2).add_(squares[:, None]).add_(squares).clamp_min_(0)
    distances.fill_diagonal_(-1)  # the least of all: the median of the others stands behind them
    place = n + (n * (n - 1) - 1) // 2
    median = float(np.partition(distances.flatten().numpy(), place)[place])  # of squares: the square of the median distance
    distances.fill_diagonal_(0)
    return distances.div_(-2 * bandwidth**2 * max(median, 1e-30)).exp_()


def rbf_cka(x: torch.Tensor, y: torch.Tensor, bandwidth: float = 0.8) -> float | None:
    """CKA of Gaussian kernels, in O(N^2) memory; (N, D), (N, E). None for constant features."""
    grams = _both(x, y, bandwidth)
    return None if grams is None else _value(*map(_double_centred, grams))


def rbf_cka_with_error(x: torch.Tensor, y: torch.Tensor, bandwidth: float = 0.8) -> tuple[float | None, float | None]:
    """The same, and its standard error: by the pairs of each sample, and by the median distances, which move with it."""
    grams = _both(x, y, bandwidth)
    if grams is None:
        return None, None
    one, other = (_double_centred(gram.clone()) for gram in grams)
    value = _value(one, other)
    if value is None:
        return None, None
    psi = moved_by_pairs(one, other)
    norms = torch.linalg.norm(one), torch.linalg.norm(other)
    for gram, own, second in ((grams[0], one, other), (grams[1], other, one)):
        widened = -2 * torch.xlogy(gram, gram)  # by the logarithm of the bandwidth
        slope = (widened * second).sum() / (norms[0] * norms[1]) - value * (widened * own).sum() / torch.linalg.norm(own) ** 2
        psi = psi + slope * _median_moved_by(gram, bandwidth)
    return min(1.0, value), error_of(psi)


def _both(x: torch.Tensor, y: torch.Tensor, bandwidth: float) -> list[torch.Tensor] | None:
    assert len(x) == len(y), "CKA compares the same samples"
    if len(x) < 2 or is_constant(x) or is_constant(y):
        return None
    return [rbf_gram(rows, bandwidth) for rows in (x, y)]


def _value(one: torch.Tensor, other: torch.Tensor) -> float | None:
    norm = torch.linalg.norm(one) * torch.linalg.norm(other)
    return min(1.0, float((one * other).sum() / norm)) if float(norm) > 1e-12 else None


def _median_moved_by(gram: torch.Tensor, bandwidth: float) -> torch.Tensor:
    """What each sample moves the logarithm of the median distance by, (N,): it has more pairs below it than half, or fewer.

    The density at the median is taken between the quantiles of 45 and 55 %.
    """
    n = len(gram)
    scale = -2 * bandwidth**2  # of log K, for squares of distances in units of the median's
    below = ((gram > float(np.exp(1 / scale))).sum(1) - 1).double() / (n - 1)
    count = n * (n - 1)
    places = [int(share * count) for share in (0.45, 0.55)]  # the diagonal, 1, stands behind all of them
    far, near = np.partition(gram.flatten().numpy(), places)[places]
    density = 0.1 / max(scale * (np.log(max(far, 1e-300)) - np.log(max(near, 1e-300))), 1e-30)
    return -(below - 0.5) / (n * density)


def _double_centred(gram: torch.Tensor) -> torch.Tensor:
    means = gram.mean(0)
    return gram.sub_(means[:, None]).sub_(means).add_(means.mean())
