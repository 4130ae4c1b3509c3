"""Representational similarity analysis: do two models find the same pairs of images alike? (Kriegeskorte et al. 2008)

Each model gives a matrix of dissimilarities between samples (RDM); RSA is the correlation of the two upper triangles.
DiVE (App. D) takes 1 - cosine and Pearson.
"""

from __future__ import annotations

from typing import Literal

import torch

from riftcli.functional.covariance import centre
from riftcli.functional.rounding import is_constant, rounding_error

Distance = Literal["cosine", "euclid"]


def rdm(features: torch.Tensor, distance: Distance = "cosine", centred: bool = False) -> torch.Tensor:
    """Dissimilarities of all pairs i < j, in fp64; (N, D) -> (N (N - 1) / 2,).

    cosine: 1 - cos, of the features as they are (the common mean dominates it) or centred first; euclid: L2 distance.
    """
    rows = features.detach().double()
    if centred:
        rows = rows - rows.mean(0)
    upper = torch.triu_indices(len(rows), len(rows), offset=1)
    if distance == "cosine":
        rows = rows / torch.linalg.norm(rows, dim=1, keepdim=True).clamp_min(1e-12)
        return 1 - (rows @ rows.T)[upper[0], upper[1]]
    rows = rows - rows.mean(0)  # distances do not change, and their squares do not cancel
    squares = rows.square().sum(1)
    both = squares[:, None] + squares[None] - 2 * rows @ rows.T
    return both[upper[0], upper[1]].clamp_min(0).sqrt()


def rsa(
    x: torch.Tensor, y: torch.Tensor, distance: Distance = "cosine", rank: bool = False, centred: bool = False
) -> float | None:
    """Correlation of the two RDMs, Pearson, or Spearman with `rank`; (N, D), (N, E). None when one RDM is constant."""
    assert len(x) == len(y), "RSA compares the same samples"
    if len(x) < 3 or is_constant(x) or is_constant(y):
        return None
    one, other = rdm(x, distance, centred), rdm(y, distance, centred)
    if is_flat(one, x, distance, centred) or is_flat(other, y, distance, centred):
        return None
    if rank:
        from scipy.stats import rankdata

        one, other = (torch.from_numpy(rankdata(values.numpy())) for values in (one, other))
    one, other = one - one.mean(), other - other.mean()
    norm = torch.linalg.norm(one) * torch.linalg.norm(other)
    return max(-1.0, min(1.0, float(one @ other / norm)))


def is_flat(values: torch.Tensor, features: torch.Tensor, distance: Distance = "cosine", centred: bool = False) -> bool:
    """Do the distances of all pairs differ by no more than the rounding of the features? Their ranks are then those of noise."""
    error = rounding_error(features)
    if distance == "cosine":  # a cosine is half a squared chord between unit vectors; the error is relative to their length
        rows = features.detach().double()
        error /= float(torch.linalg.norm(centre(rows) if centred else rows))
        return float((2 * values).clamp_min(0).sqrt().std()) <= error
    return float(values.std()) <= error / len(features) ** 0.5
