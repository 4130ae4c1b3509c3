"""Covariance of features: streamed for a whole split, or of one batch inside the graph."""

from __future__ import annotations

import torch


class Covariance:
    """Mean and covariance of rows that arrive in chunks, in fp64.

    Chan's pairwise merge: centred sums stay exact where sum(x^2) - n mean^2 would cancel (CLS features have outlier
    dimensions whose mean^2 dwarfs their variance).
    """

    def __init__(self, dim: int) -> None:
        self.n = 0
        self.mean = torch.zeros(dim, dtype=torch.float64)
        self.scatter = torch.zeros(dim, dim, dtype=torch.float64)

    def update(self, rows: torch.Tensor) -> None:
        """Add rows; (k, D) of any float dtype."""
        rows = rows.detach().cpu().double()
        count = rows.shape[0]
        if count == 0:
            return
        mean = rows.mean(0)
        centred = rows - mean
        delta = mean - self.mean
        total = self.n + count
        self.scatter += centred.T @ centred + torch.outer(delta, delta) * (self.n * count / total)
        self.mean += delta * (count / total)
        self.n = total

    def value(self) -> torch.Tensor:
        """Covariance with the n - 1 denominator; (D, D) fp64."""
        assert self.n > 1, "a covariance needs two samples"
        return self.scatter / (self.n - 1)


def covariance(rows: torch.Tensor, chunk: int = 4096) -> torch.Tensor:
    """Covariance of (N, D) rows, accumulated in fp64 chunks; (D, D) fp64."""
    stream = Covariance(rows.shape[1])
    for part in rows.split(chunk):
        stream.update(part)
    return stream.value()


def centre(rows: torch.Tensor) -> torch.Tensor:
    """Rows minus their mean; (n, D) -> (n, D)."""
    return rows - rows.mean(0, keepdim=True)


def eigenvalues(centred: torch.Tensor) -> torch.Tensor:
    """Eigenvalues of the covariance of centred (n, D) rows, descending, padded with zeros to D.

    Uses the n x n Gram matrix when that is the smaller one: both have the same non-zero spectrum.
    """
    n, dim = centred.shape
    small = centred @ centred.T if n < dim else centred.T @ centred
    values = torch.linalg.eigvalsh(small / (n - 1)).flip(0).clamp_min(0)  # (min(n, D),)
    return torch.nn.functional.pad(values, (0, dim - values.shape[0]))


def effective_rank(spectrum: torch.Tensor) -> torch.Tensor:
    """Participation ratio (sum of eigenvalues)^2 / sum of squares: D for white features, 1 for a line; ()."""
    return spectrum.sum() ** 2 / spectrum.square().sum().clamp_min(1e-30)


def participation_ratio(scatter: torch.Tensor) -> float:
    """Effective rank of a covariance or a multiple of it, (D, D): tr(S)^2 / ||S||_F^2, for which no spectrum is needed."""
    return float(scatter.trace() ** 2 / scatter.square().sum().clamp_min(1e-30))


def effective_rank_debiased(rows: torch.Tensor) -> float | None:
    """tr(S)^2 / tr(S^2) of the population: both by their U-statistics, where the plain ratio is too small with few samples.

    rows (N, D) in fp64. None below 4 samples, and where the estimate of tr(S^2) is not positive. Half the squared distances of
    pairs d_ij have the mean tr(S); products of disjoint pairs have that of tr(S)^2, which sums over all of them, free of those
    that share a sample.
    """
    n = len(rows)
    if n < 4:
        return None
    x = centre(rows)
    small = x @ x.T if n < x.shape[1] else x.T @ x  # both have the same norm
    own, products = x.square().sum(1), small.square().sum()  # |a_i|^2 (n,), and the sum of <a_i, a_j>^2 over all i, j
    # d_ij / 2 = (|a_i|^2 + |a_j|^2) / 2 - <a_i, a_j>, and the products of centred rows with one of them sum to nothing
    halves = (n * own + own.sum()) / 2
    squares_of_halves = (n * own.square().sum() + own.sum() ** 2) / 2 + products
    disjoint = halves.sum() ** 2 - 4 * halves.square().sum() + 2 * squares_of_halves
    apart = products - own.square().sum()  # i and j differ; what is left of the sum over j is -|a_i|^2
    squares = apart + own.sum() ** 2 / ((n - 1) * (n - 2)) - 2 / (n - 2) * own.square().sum()
    bottom = float(squares) / (n * (n - 3))
    top = float(disjoint) / (n * (n - 1) * (n - 2) * (n - 3))
    return top / bottom if bottom > 0 else None
