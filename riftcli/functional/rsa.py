"""Representational similarity analysis: do two models find the same pairs of images alike? (Kriegeskorte et al. 2008)

Each model gives a matrix of dissimilarities between samples (RDM); RSA is the correlation of the two upper triangles.
DiVE (App. D) takes 1 - cosine and Pearson.
"""

from __future__ import annotations

from dataclasses import dataclass
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


BINS = 2**18  # equal steps of the value; more pairs than that are counted by them, instead of sorted
COARSE = 1e-3  # share of the pairs in one step from which they are sorted after all


@dataclass(frozen=True)
class Order:
    """Pairs in the order of a value: their ranks from 1, the mean of their places for equal ones; (P,) fp64.

    places: the order itself, or (binned) the step that every pair is in.
    """

    ranks: torch.Tensor
    places: torch.Tensor
    binned: bool = False

    def later(self, values: torch.Tensor) -> torch.Tensor:
        """Of every pair, the sum of the values of those that come later, over the number of pairs; (P,) -> (P,)."""
        if self.binned:
            sums = torch.bincount(self.places, values, BINS)
            return ((sums.sum() - sums.cumsum(0) + sums / 2) / len(values))[self.places]
        ordered, found = values[self.places], torch.empty_like(values)
        found[self.places] = (ordered.sum() - ordered.cumsum(0)) / len(values)
        return found


def _spearman(one: torch.Tensor, other: torch.Tensor) -> tuple[float, tuple[Order, Order]]:
    """The correlation of the ranks of what is above the diagonals, and their order."""
    upper = torch.triu_indices(len(one), len(one), offset=1)
    found = in_order(one[upper[0], upper[1]]), in_order(other[upper[0], upper[1]])
    a, b = (order.ranks - order.ranks.mean() for order in found)
    return _value(float(a @ b / (torch.linalg.norm(a) * torch.linalg.norm(b)))), found


def _moved_by(one: Order, other: Order, n: int) -> torch.Tensor:
    """What each of n samples moves the correlation of ranks by, (n,): by its own pairs, and because the ranks of all pairs above
    those move with them.
    """
    count = len(one.ranks)
    u, v = (order.ranks / count - 0.5 for order in (one, other))
    pairs = 12 / count * (u * v + one.later(v) + other.later(u))
    upper = torch.triu_indices(n, n, offset=1)
    psi = pairs.new_zeros(n).index_add_(0, upper[0], pairs).index_add_(0, upper[1], pairs)
    return psi - psi.mean()


def in_order(values: torch.Tensor) -> Order:
    """The order of values (P,).

    More pairs than 262,144 are counted by so many equal steps of the value, and those of one step share their mean rank: a
    rank is off by less than a thousandth of all, a correlation by less than 1e-6, in a fraction of the time. Not where the values
    lie so unevenly that a step has more than a thousandth of them.
    """
    if len(values) > BINS:
        by_steps = _by_steps(values)
        if by_steps is not None:
            return by_steps
    plain = values.numpy()
    order = np.argsort(plain)
    ordered = plain[order]
    if (ordered[1:] == ordered[:-1]).any():
        from scipy.stats import rankdata

        return Order(torch.from_numpy(rankdata(plain)), torch.from_numpy(order))
    found = np.empty(len(plain))  # without ties this is the same, and takes a third of the time
    found[order] = np.arange(1, len(plain) + 1)
    return Order(torch.from_numpy(found), torch.from_numpy(order))


def _by_steps(values: torch.Tensor) -> Order | None:
    low, high = values.min(), values.max()
    if not low < high:
        return None
    places = (values - low).mul_((BINS - 1) / (high - low)).long()
    counts = torch.bincount(places, minlength=BINS)
    if not float(counts.max()) <= COARSE * len(values):
        return None
    return Order((counts.cumsum(0) - counts + (counts + 1) / 2).double()[places], places, binned=True)


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
