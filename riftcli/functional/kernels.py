"""CKA with a Gaussian kernel: similarity of neighbourhoods rather than of all distances (Kornblith et al. 2019, Sec. 4)."""

from __future__ import annotations

import math

import torch

from riftcli.functional.influence import error_of, moved_by_pairs
from riftcli.functional.pair_table import PairTable, above_diagonal, at_places
from riftcli.functional.paired import Paired

WINDOW = (0.45, 0.55)  # quantiles between which the density at the median is taken


def rbf_cka(x: torch.Tensor, y: torch.Tensor, bandwidth: float = 0.8) -> float | None:
    """CKA of kernels exp(-|a - b|^2 / (2 s^2)) with s = bandwidth * median distance between samples, in fp64; (N, D), (N, E).
    None for constant features.
    """
    return rbf_cka_with_error(Paired(x, y), bandwidth)[0]


def rbf_cka_with_error(pair: Paired, bandwidth: float = 0.8) -> tuple[float | None, float | None]:
    """The same, and its standard error: by the pairs of each sample, and by the median distances, which move with it."""
    if len(pair) < 2 or pair.constant:
        return None, None
    one, other = (Kernel(table, bandwidth) for table in pair.tables)
    n, sums = len(pair), []
    totals = one.means.new_zeros(4)
    for rows in one.table.blocks():
        (a, wide_a), (b, wide_b) = one.centred(rows), other.centred(rows)
        sums.append(torch.stack([torch.einsum("ij,ij->i", *two) for two in ((a, b), (a, a), (b, b))]))
        totals += torch.stack([(wide_a * b).sum(), (wide_a * a).sum(), (wide_b * a).sum(), (wide_b * b).sum()])
    ab, aa, bb = torch.cat(sums, 1)  # (N,)
    norm = float((aa.sum() * bb.sum()).sqrt())
    if not norm > 1e-12:
        return None, None
    value = float(ab.sum()) / norm
    slopes = totals[0] / norm - value * totals[1] / aa.sum(), totals[2] / norm - value * totals[3] / bb.sum()
    psi = moved_by_pairs(value, ab, aa, bb)
    for side, slope in zip((one, other), slopes, strict=True):
        psi = psi - slope * (side.nearer / (n - 1) - 0.5) / (n * side.density)
    return min(1.0, value), error_of(psi)


class Kernel:
    """The Gaussian kernel of a table of pairs, made a few rows at a time.

    means: of its rows, (N,). nearer: how many samples are nearer to each than the median of all distances, (N,). density: of the
    logarithm of squared distances, at its median.
    """

    def __init__(self, table: PairTable, bandwidth: float) -> None:
        self.table, n = table, len(table)
        pairs = above_diagonal((table.squares(rows) for rows in table.blocks()), n)
        count = len(pairs)
        places = [int(WINDOW[0] * count), (count - 1) // 2, int(WINDOW[1] * count)]
        near, median, far = (max(square, 1e-30) for square in at_places(pairs, places))
        self.scale = -1 / (2 * bandwidth**2 * median)  # squares: the square of the median distance
        self.density = (WINDOW[1] - WINDOW[0]) / max(math.log(far) - math.log(near), 1e-30)
        del pairs
        logs = (self.logs(rows) for rows in table.blocks())
        parts = [torch.stack([(own > self.scale * median).sum(1) - 1, own.exp_().mean(1)]) for own in logs]
        self.nearer, self.means = torch.cat(parts, 1)

    def logs(self, rows: slice) -> torch.Tensor:
        """The logarithm of some rows of the kernel, (n, N)."""
        return self.table.squares(rows).mul_(self.scale)

    def centred(self, rows: slice) -> tuple[torch.Tensor, torch.Tensor]:
        """Some rows (n, N) of the doubly centred kernel, and of what it gains by the logarithm of its bandwidth."""
        logs = self.logs(rows)
        kernel = logs.exp()
        return kernel.clone().sub_(self.means[rows, None]).sub_(self.means).add_(self.means.mean()), logs.mul_(kernel).mul_(-2)
