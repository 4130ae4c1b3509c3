"""Similarity after the best linear map: Procrustes (rotations), CCA and SVCCA (any map)."""

from __future__ import annotations

import torch

from riftcli.functional.covariance import centre
from riftcli.functional.influence import Moments, moments
from riftcli.functional.rounding import is_constant, noise_level

MANY = 2_000  # samples from which SVCCA is computed from D x D moments: small directions, for which they are too coarse, are cut


def _unit(rows: torch.Tensor) -> torch.Tensor | None:
    """Centred rows of Frobenius norm 1, fp64; None when they are constant."""
    if is_constant(rows):
        return None
    rows = centre(rows.detach().double())
    return rows / torch.linalg.norm(rows)


def procrustes_distance(x: torch.Tensor, y: torch.Tensor) -> float | None:
    """min over rotations Q and shifts of ||X - Y Q||_F, for X and Y of norm 1; in [0, sqrt 2], 0 for equal up to rotation,
    shift and scale (Ding et al. 2021, who square it); (N, D), (N, E). None for constant features.
    """
    assert len(x) == len(y), "Procrustes compares the same samples"
    one, other = _unit(x), _unit(y)
    if one is None or other is None:
        return None
    nuclear = torch.linalg.matrix_norm(one.T @ other, ord="nuc")
    return float((2 - 2 * nuclear).clamp_min(0).sqrt())


def procrustes_align(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Y rotated and shifted onto X (no scaling), in fp64: what is left is no mere rotation.

    (N, D), (N, D) -> (N, D).
    """
    x, y = x.detach().double(), y.detach().double()
    return centre(y) @ procrustes_rotation(centre(y), centre(x)) + x.mean(0)


def procrustes_rotation(source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The orthogonal R with the smallest ||source R - target||_F, in fp64; (N, D), (N, D) -> (D, D). Rows as they are: centre
    them first where a shift does not count.
    """
    left, _, right = torch.linalg.svd(source.double().T @ target.double())
    return left @ right


def canonical_correlations(x: torch.Tensor, y: torch.Tensor, variance: float | None = None) -> torch.Tensor | None:
    """Canonical correlations, descending; (N, D), (N, E) -> (min of the two ranks,).

    variance: keep only the leading principal directions that hold this share of each side's variance (SVCCA, Raghu et al.
    2017); None keeps every direction that is not constant. None when a side is constant, or when there are not more
    samples than directions: then any two sets of features correlate perfectly.
    """
    assert len(x) == len(y), "CCA compares the same samples"
    if is_constant(x) or is_constant(y):
        return None
    if variance is not None and len(x) > MANY and len(x) > 4 * max(x.shape[1], y.shape[1]):
        return _correlations_of_moments(moments(x, y), variance)
    bases = []
    for rows in (x, y):
        left, values, _ = torch.linalg.svd(centre(rows.detach().double()), full_matrices=False)
        kept = int((values > noise_level(rows)).sum())  # a LayerNorm removes a direction, which rounding brings back
        if variance is not None:
            share = values.square().cumsum(0) / values.square().sum()
            kept = min(kept, int((share < variance).sum()) + 1)
        bases.append(left[:, :kept])
    if len(x) - 1 <= max(base.shape[1] for base in bases):
        return None
    return torch.linalg.svdvals(bases[0].T @ bases[1]).clamp(0, 1)


BLOCKS = 32  # of samples, that halves are put together from


def svcca_error(x: torch.Tensor, y: torch.Tensor, variance: float, draws: int, seed: int) -> float | None:
    """Standard error of the mean of those correlations, from its values on random halves of the samples (for halves, the
    delete-d jackknife needs no factor; Shao and Wu 1989); (N, D), (N, E). A half is 16 of 32 random blocks, whose moments are
    summed: the samples are multiplied once, and not in every half. None for few samples.

    How each sample moves the value would not do: the number of directions jumps.
    """
    count = len(x)
    if count <= 2 * MANY or count <= 8 * max(x.shape[1], y.shape[1]) or is_constant(x) or is_constant(y):
        return None
    generator = torch.Generator().manual_seed(seed)
    blocks = torch.randperm(count, generator=generator).tensor_split(BLOCKS)
    x, y = (rows.detach() - rows.detach().mean(0) for rows in (x, y))
    sizes = torch.tensor([len(rows) for rows in blocks], dtype=torch.float64)
    of_blocks = torch.stack([_block(x[rows], y[rows]) for rows in blocks])  # (32, K)
    chosen = torch.zeros(draws, BLOCKS, dtype=torch.float64)
    for row in chosen:
        row[torch.randperm(BLOCKS, generator=generator)[: BLOCKS // 2]] = 1
    values, d, e = [], x.shape[1], y.shape[1]
    for some in chosen.split(8):  # halves at a time: those of 30 are half a gigabyte
        for n, half in zip(some @ sizes, some @ of_blocks, strict=True):
            a, b, xx, xy, yy = half.split([d, e, d * d, d * e, e * e])
            own = (xx.view(d, d) - a.outer(a) / n, xy.view(d, e) - a.outer(b) / n, yy.view(e, e) - b.outer(b) / n)
            values.append(_mean_correlation((own[0].float(), own[1].float(), own[2].float()), variance))
    return float(torch.stack(values).std())


def _block(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Sums and products of some samples, in fp64 and in a row: those of x, of y, x^T x, x^T y, y^T y."""
    products = x.T @ x, x.T @ y, y.T @ y
    return torch.cat([x.double().sum(0), y.double().sum(0), *(product.double().flatten() for product in products)])


def _mean_correlation(of_half: Moments, variance: float) -> torch.Tensor:
    """Mean of the canonical correlations, which are the roots of the eigenvalues of C^T C: found in half the time of C's own. In
    fp32: a spread needs no more digits.
    """
    c = _between_leading(of_half, variance)
    small = c.T @ c if c.shape[1] <= c.shape[0] else c @ c.T
    return torch.linalg.eigvalsh(small).clamp(0, 1).sqrt().mean()


def _correlations_of_moments(of_all: Moments, variance: float) -> torch.Tensor:
    """Canonical correlations, descending, of the leading directions that hold this share of each side's variance (SVCCA)."""
    return torch.linalg.svdvals(_between_leading(of_all, variance)).clamp(0, 1)


def _between_leading(of_rows: Moments, variance: float) -> torch.Tensor:
    """C (k, l), whose singular values are those correlations."""
    xx, xy, yy = of_rows
    left, right = (_whitened(m, variance) for m in (xx, yy))
    return left.T @ xy @ right


def _whitened(m: torch.Tensor, variance: float) -> torch.Tensor:
    """(D, k) directions that make a side's leading variance 1."""
    values, vectors = torch.linalg.eigh(m)
    values, vectors = values.flip(0), vectors.flip(1)
    share = values.clamp_min(0).cumsum(0) / values.clamp_min(0).sum()
    kept = int((share < variance).sum()) + 1
    return vectors[:, :kept] / values[:kept].sqrt()
