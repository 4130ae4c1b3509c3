"""Representational similarity analysis: do two models find the same pairs of images alike? (Kriegeskorte et al. 2008)

Each model gives a matrix of dissimilarities between samples (RDM); RSA is the correlation of the two upper triangles.
DiVE (App. D) takes 1 - cosine and Pearson.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from riftcli.functional.covariance import centre
from riftcli.functional.influence import error_of, moved_by_pairs
from riftcli.functional.pair_table import Distance, PairTable, above_diagonal, on_diagonal
from riftcli.functional.paired import Paired
from riftcli.functional.rounding import rounding_error

Tables = tuple[PairTable, PairTable]


def rsa(
    x: torch.Tensor, y: torch.Tensor, distance: Distance = "cosine", rank: bool = False, centred: bool = False
) -> float | None:
    """Correlation of the dissimilarities of all pairs i < j, Pearson, or Spearman with `rank`; (N, D), (N, E). None when those of
    one side are constant.

    distance: cosine: 1 - cos, of the features as they are (the common mean dominates it) or centred first; euclid: L2.
    """
    return rsa_with_error(Paired(x, y), distance, rank, centred)[0]


def rsa_with_error(
    pair: Paired, distance: Distance = "cosine", rank: bool = False, centred: bool = False
) -> tuple[float | None, float | None]:
    """The same, and its standard error (of centred features as if their mean did not move with the samples)."""
    tables = _tables(pair, distance, centred)
    if tables is None:
        return None, None
    return _spearman(tables, distance) if rank else _pearson(tables, distance)


def _tables(pair: Paired, distance: Distance, centred: bool) -> Tables | None:
    if len(pair) < 3 or pair.constant:
        return None
    sides = pair.x, pair.y
    if centred:
        x, y = (PairTable(centre(rows.to(pair.device).double())) for rows in sides)
    else:
        x, y = pair.tables
    tables = x, y
    flat = (is_flat(table, rows, distance, centred) for table, rows in zip(tables, sides, strict=True))
    return None if any(flat) else tables


def _pearson(tables: Tables, distance: Distance) -> tuple[float, float | None]:
    means, parts = [table.mean(distance) for table in tables], []
    for rows in tables[0].blocks():
        a, b = (
            on_diagonal(table.distances(rows, distance).sub_(mean), rows, 0) for table, mean in zip(tables, means, strict=True)
        )
        parts.append(torch.stack([torch.einsum("ij,ij->i", *two) for two in ((a, b), (a, a), (b, b))]))
    ab, aa, bb = torch.cat(parts, 1)  # (N,)
    value = float(ab.sum() / (aa.sum() * bb.sum()).sqrt())
    return _within(value), error_of(moved_by_pairs(value, ab, aa, bb))


def _within(correlation: float) -> float:
    return max(-1.0, min(1.0, correlation))


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


def _spearman(tables: Tables, distance: Distance) -> tuple[float, float | None]:
    n, found = len(tables[0]), []
    for table in tables:
        found.append(in_order(above_diagonal((table.distances(rows, distance) for rows in table.blocks()), n)))
    a, b = (order.ranks - order.ranks.mean() for order in found)
    value = float(a @ b / (torch.linalg.norm(a) * torch.linalg.norm(b)))
    return _within(value), error_of(_moved_by(found[0], found[1], n))


def _moved_by(one: Order, other: Order, n: int) -> torch.Tensor:
    """What each of n samples moves the correlation of ranks by, (n,): by its own pairs, and because the ranks of all pairs above
    those move with them.
    """
    count = len(one.ranks)
    u, v = (order.ranks / count - 0.5 for order in (one, other))
    pairs = one.later(v).add_(other.later(u)).add_(u.mul_(v)).mul_(12 / count)
    psi, start = pairs.new_zeros(n), 0
    for i in range(n - 1):  # the pairs of a sample with those behind it lie side by side
        own = pairs[start : start + n - 1 - i]
        psi[i] += own.sum()
        psi[i + 1 :] += own
        start += len(own)
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
    plain = values.cpu().numpy()
    order = np.argsort(plain)
    ordered = plain[order]
    if (ordered[1:] == ordered[:-1]).any():
        from scipy.stats import rankdata

        found = rankdata(plain)
    else:
        found = np.empty(len(plain))  # without ties this is the same, and takes a third of the time
        found[order] = np.arange(1, len(plain) + 1)
    return Order(torch.from_numpy(found).to(values.device), torch.from_numpy(order).to(values.device))


def _by_steps(values: torch.Tensor) -> Order | None:
    low, high = values.min(), values.max()
    if not low < high:
        return None
    places = (values - low).mul_((BINS - 1) / (high - low)).long()
    counts = torch.bincount(places, minlength=BINS)
    if not float(counts.max()) <= COARSE * len(values):
        return None
    return Order((counts.cumsum(0) - counts + (counts + 1) / 2).double()[places], places, binned=True)


def is_flat(table: PairTable, features: torch.Tensor, distance: Distance = "cosine", centred: bool = False) -> bool:
    """Do the distances of all pairs differ by no more than the rounding of the features? Their ranks are then those of noise.

    table: of the features (N, D), or of the centred ones.
    """
    error = rounding_error(features)
    if distance == "cosine":  # a cosine is half a squared chord between unit vectors; the error is relative to their length
        rows = features.detach().double()
        error /= float(torch.linalg.norm(centre(rows) if centred else rows))
        return table.spread("chord") <= error
    return table.spread(distance) <= error / len(features) ** 0.5
