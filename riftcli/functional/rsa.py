"""Representational similarity analysis: do two models find the same pairs of images alike? (Kriegeskorte et al. 2008)

Each model gives a matrix of dissimilarities between samples (RDM); RSA is the correlation of the two upper triangles.
DiVE (App. D) takes 1 - cosine and Pearson.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch

from riftcli.functional.covariance import centre
from riftcli.functional.influence import correlation_of_pairs
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
    return rsa_with_error(x, y, distance, rank, centred)[0]


def rsa_with_error(
    x: torch.Tensor, y: torch.Tensor, distance: Distance = "cosine", rank: bool = False, centred: bool = False
) -> tuple[float | None, float | None]:
    """The same, and its standard error, for which the ranks stay as they are, and so does the centre of centred features."""
    assert len(x) == len(y), "RSA compares the same samples"
    if len(x) < 3 or is_constant(x) or is_constant(y):
        return None, None
    tables = []
    for rows in (x, y):
        values = rdm(rows, distance, centred)
        if is_flat(values, rows, distance, centred):
            return None, None
        values = ranks(values) if rank else values
        tables.append(_table(values - values.mean(), len(rows)))
    value, error = correlation_of_pairs(*tables)
    return max(-1.0, min(1.0, value)), error


def _table(values: torch.Tensor, n: int) -> torch.Tensor:
    """The pairs i < j as a symmetric (n, n) table with zeros on its diagonal."""
    upper = torch.triu_indices(n, n, offset=1)
    table = values.new_zeros(n, n)
    table[upper[0], upper[1]] = values
    return table + table.T


def ranks(values: torch.Tensor) -> torch.Tensor:
    """Rank of each value from 1, the mean of their places for equal ones; (P,) -> (P,) fp64."""
    plain = values.numpy()
    order = np.argsort(plain)
    ordered = plain[order]
    if (ordered[1:] == ordered[:-1]).any():
        from scipy.stats import rankdata

        return torch.from_numpy(rankdata(plain))
    found = np.empty(len(plain))  # without ties this is the same, and takes a third of the time
    found[order] = np.arange(1, len(plain) + 1)
    return torch.from_numpy(found)


def is_flat(values: torch.Tensor, features: torch.Tensor, distance: Distance = "cosine", centred: bool = False) -> bool:
    """Do the distances of all pairs differ by no more than the rounding of the features? Their ranks are then those of noise."""
    error = rounding_error(features)
    if distance == "cosine":  # a cosine is half a squared chord between unit vectors; the error is relative to their length
        rows = features.detach().double()
        error /= float(torch.linalg.norm(centre(rows) if centred else rows))
        return float((2 * values).clamp_min(0).sqrt().std()) <= error
    return float(values.std()) <= error / len(features) ** 0.5
