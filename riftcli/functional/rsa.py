"""Representational similarity analysis: do two models find the same pairs of images alike? (Kriegeskorte et al. 2008)

Each model gives a matrix of dissimilarities between samples (RDM); RSA is the correlation of the two upper triangles.
DiVE (App. D) takes 1 - cosine and Pearson.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch

from riftcli.functional.covariance import centre
from riftcli.functional.influence import correlation_of_pairs, error_of
from riftcli.functional.rounding import is_constant, rounding_error

Distance = Literal["cosine", "euclid"]


def rdm(features: torch.Tensor, distance: Distance = "cosine", centred: bool = False) -> torch.Tensor:
    """Dissimilarities of all pairs i < j, in fp64; (N, D) -> (N (N - 1) / 2,).

    cosine: 1 - cos, of the features as they are (the common mean dominates it) or centred first; euclid: L2 distance.
    """
    upper = torch.triu_indices(len(features), len(features), offset=1)
    return _table(features, distance, centred)[upper[0], upper[1]]


def _table(features: torch.Tensor, distance: Distance, centred: bool) -> torch.Tensor:
    """The same as a symmetric (N, N) table with zeros on its diagonal."""
    rows = features.detach().double()
    if centred:
        rows = rows - rows.mean(0)
    if distance == "cosine":
        rows = rows / torch.linalg.norm(rows, dim=1, keepdim=True).clamp_min(1e-12)
        return (rows @ rows.T).neg_().add_(1).fill_diagonal_(0)
    rows = rows - rows.mean(0)  # distances do not change, and their squares do not cancel
    squares = rows.square().sum(1)
    return (rows @ rows.T).mul_(-2).add_(squares[:, None]).add_(squares).clamp_min_(0).sqrt_().fill_diagonal_(0)


def rsa(
    x: torch.Tensor, y: torch.Tensor, distance: Distance = "cosine", rank: bool = False, centred: bool = False
) -> float | None:
    """Correlation of the two RDMs, Pearson, or Spearman with `rank`; (N, D), (N, E). None when one RDM is constant."""
    tables = _both(x, y, distance, centred)
    if tables is None:
        return None
    return _spearman(*tables)[0] if rank else _value(correlation_of_pairs(*map(_without_mean, tables))[0])


def rsa_with_error(
    x: torch.Tensor, y: torch.Tensor, distance: Distance = "cosine", rank: bool = False
) -> tuple[float | None, float | None]:
    """The same, and its standard error."""
    tables = _both(x, y, distance, False)
    if tables is None:
        return None, None
    if not rank:
        value, error = correlation_of_pairs(*map(_without_mean, tables))
        return _value(value), error
    value, parts = _spearman(*tables)
    return value, error_of(_moved_by(*parts, len(x)))


def _both(x: torch.Tensor, y: torch.Tensor, distance: Distance, centred: bool) -> list[torch.Tensor] | None:
    assert len(x) == len(y), "RSA compares the same samples"
    if len(x) < 3 or is_constant(x) or is_constant(y):
        return None
    tables = [_table(rows, distance, centred) for rows in (x, y)]
    flat = (is_flat(table, rows, distance, centred) for table, rows in zip(tables, (x, y), strict=True))
    return None if any(flat) else tables


def _value(correlation: float) -> float:
    return max(-1.0, min(1.0, correlation))


def _without_mean(table: torch.Tensor) -> torch.Tensor:
    """Of the pairs; the diagonal stays zero."""
    return table.sub_(table.sum() / (len(table) * (len(table) - 1))).fill_diagonal_(0)


Ranked = tuple[torch.Tensor, torch.Tensor]  # ranks of the pairs from 1 (P,), and the places that put them in order (P,)


def _spearman(one: torch.Tensor, other: torch.Tensor) -> tuple[float, tuple[Ranked, Ranked]]:
    """The correlation of the ranks of what is above the diagonals, and those."""
    upper = torch.triu_indices(len(one), len(one), offset=1)
    found = ranks(one[upper[0], upper[1]]), ranks(other[upper[0], upper[1]])
    a, b = (own - own.mean() for own, _ in found)
    return _value(float(a @ b / (torch.linalg.norm(a) * torch.linalg.norm(b)))), found


def _moved_by(one: Ranked, other: Ranked, n: int) -> torch.Tensor:
    """What each of n samples moves the correlation of ranks by, (n,): by its own pairs, and because the ranks of all pairs above
    those move with them.
    """
    count = len(one[0])
    u, v = (own / count - 0.5 for own, _ in (one, other))
    pairs = 12 / count * (u * v + _above(one[1], v) + _above(other[1], u))
    upper = torch.triu_indices(n, n, offset=1)
    psi = pairs.new_zeros(n).index_add_(0, upper[0], pairs).index_add_(0, upper[1], pairs)
    return psi - psi.mean()


def _above(order: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Sum of the values of the pairs that come later in the order, over their number; (P,), (P,) -> (P,)."""
    ordered, found = values[order], torch.empty_like(values)
    found[order] = (ordered.sum() - ordered.cumsum(0)) / len(values)
    return found


def ranks(values: torch.Tensor) -> Ranked:
    """Rank of each value from 1, the mean of their places for equal ones, and the order; (P,) -> (P,) fp64, (P,)."""
    plain = values.numpy()
    order = np.argsort(plain)
    ordered = plain[order]
    if (ordered[1:] == ordered[:-1]).any():
        from scipy.stats import rankdata

        return torch.from_numpy(rankdata(plain)), torch.from_numpy(order)
    found = np.empty(len(plain))  # without ties this is the same, and takes a third of the time
    found[order] = np.arange(1, len(plain) + 1)
    return torch.from_numpy(found), torch.from_numpy(order)


def is_flat(values: torch.Tensor, features: torch.Tensor, distance: Distance = "cosine", centred: bool = False) -> bool:
    """Do the distances of all pairs differ by no more than the rounding of the features? Their ranks are then those of noise.

    values: of pairs (P,), or as a table with zeros on its diagonal (N, N).
    """
    error = rounding_error(features)
    if distance == "cosine":  # a cosine is half a squared chord between unit vectors; the error is relative to their length
        rows = features.detach().double()
        error /= float(torch.linalg.norm(centre(rows) if centred else rows))
        return _spread((2 * values).clamp_min_(0).sqrt_()) <= error
    return _spread(values) <= error / len(features) ** 0.5


def _spread(values: torch.Tensor) -> float:
    """Standard deviation over pairs."""
    if values.dim() == 1:
        return float(values.std())
    count = len(values) * (len(values) - 1)
    mean = values.sum() / count
    around = (values - mean).square().sum() - len(values) * mean**2  # without the diagonal
    return float((around.clamp_min(0) / 2 / (count / 2 - 1)).sqrt())
