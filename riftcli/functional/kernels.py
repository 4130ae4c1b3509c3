"""CKA with a Gaussian kernel: similarity of neighbourhoods rather than of all distances (Kornblith et al. 2019, Sec. 4)."""

from __future__ import annotations

import torch

from riftcli.functional.covariance import centre
from riftcli.functional.rounding import is_constant


def rbf_gram(features: torch.Tensor, bandwidth: float = 0.8) -> torch.Tensor:
    """exp(-|a - b|^2 / (2 s^2)) with s = bandwidth * median distance between samples, in fp64; (N, D) -> (N, N)."""
    rows = centre(features.detach().double())
    squares = rows.square().sum(1)
    distances = (squares[:, None] + squares[None] - 2 * rows @ rows.T).clamp_min(0)
    n = len(rows)
    median = distances[~torch.eye(n, dtype=torch.bool)].median()  # of squares: the square of the median distance
    return (-distances / (2 * bandwidth**2 * median.clamp_min(1e-30))).exp()


def rbf_cka(x: torch.Tensor, y: torch.Tensor, bandwidth: float = 0.8) -> float | None:
    """CKA of Gaussian kernels, in O(N^2) memory; (N, D), (N, E). None for constant features."""
    assert len(x) == len(y), "CKA compares the same samples"
    if len(x) < 2 or is_constant(x) or is_constant(y):
        return None
    one, other = (_double_centred(rbf_gram(rows, bandwidth)) for rows in (x, y))
    norm = torch.linalg.norm(one) * torch.linalg.norm(other)
    return min(1.0, float((one * other).sum() / norm)) if float(norm) > 1e-12 else None


def _double_centred(gram: torch.Tensor) -> torch.Tensor:
    means = gram.mean(0)
    return gram - means[:, None] - means[None] + means.mean()
