"""CKA with a Gaussian kernel: similarity of neighbourhoods rather than of all distances (Kornblith et al. 2019, Sec. 4)."""

from __future__ import annotations

import numpy as np
import torch

from riftcli.functional.covariance import centre
from riftcli.functional.influence import correlation_of_pairs
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
    return rbf_cka_with_error(x, y, bandwidth)[0]


def rbf_cka_with_error(x: torch.Tensor, y: torch.Tensor, bandwidth: float = 0.8) -> tuple[float | None, float | None]:
    """The same, and its standard error, for which the bandwidth stays as it is."""
    assert len(x) == len(y), "CKA compares the same samples"
    if len(x) < 2 or is_constant(x) or is_constant(y):
        return None, None
    one, other = (_double_centred(rbf_gram(rows, bandwidth)) for rows in (x, y))
    norm = torch.linalg.norm(one) * torch.linalg.norm(other)
    if not float(norm) > 1e-12:
        return None, None
    value, error = correlation_of_pairs(one, other)
    return min(1.0, value), error


def _double_centred(gram: torch.Tensor) -> torch.Tensor:
    means = gram.mean(0)
    return gram.sub_(means[:, None]).sub_(means).add_(means.mean())
