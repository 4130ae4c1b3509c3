"""Similarity after the best linear map: Procrustes (rotations), CCA and SVCCA (any map)."""

from __future__ import annotations

import torch

from riftcli.functional.cka import Moments
from riftcli.functional.covariance import centre
from riftcli.functional.influence import error_of
from riftcli.functional.paired import Paired
from riftcli.functional.rounding import noise_level

MANY_ROWS = 20_000  # that are not sent to a device at once
MANY = 2_000  # samples from which products of fp32 do for SVCCA: small directions, for which they are too coarse, are cut


def procrustes_distance(x: torch.Tensor, y: torch.Tensor) -> float | None:
    """min over rotations Q and shifts of ||X - Y Q||_F, for X and Y of norm 1; in [0, sqrt 2], 0 for equal up to rotation,
    shift and scale (Ding et al. 2021, who square it); (N, D), (N, E). None for constant features.
    """
    return procrustes_of(Paired(x, y))[0]


def procrustes_of(pair: Paired, with_error: bool = False) -> tuple[float | None, float | None]:
    """The same, and its standard error. In fp64: of features that are nearly equal it is the root of a small difference."""
    if len(pair) < 2 or pair.sums.is_constant():
        return None, None
    cross, norm_x, norm_y = (torch.zeros((), dtype=torch.float64, device=pair.device) for _ in range(3))
    for x, y in pair.centred(torch.float64):
        cross, norm_x, norm_y = cross + x.T @ y, norm_x + (x * x).sum(), norm_y + (y * y).sum()
    few = len(pair) < min(cross.shape)
    share = torch.linalg.svdvals(_small(pair) if few else cross).sum() / (norm_x * norm_y).sqrt()
    value = (2 - 2 * share).clamp_min(0).sqrt()
    if not with_error:
        return float(value), None
    left, _, right = torch.linalg.svd(cross, full_matrices=False)
    rotation, parts = left @ right, []
    for x, y in pair.centred(torch.float64):
        x, y = x / norm_x.sqrt(), y / norm_y.sqrt()
        lengths = x.square().sum(1) + y.square().sum(1)
        parts.append(((x @ rotation) * y).sum(1) - share / 2 * lengths)
    return float(value), error_of(torch.cat(parts) / value)


def _small(pair: Paired) -> torch.Tensor:
    """A product (N, N) with the singular values of X^T Y, of fewer samples than dimensions."""
    sides = (torch.cat(side) for side in zip(*pair.centred(torch.float64), strict=True))
    one, other = (torch.linalg.qr(rows.T, mode="r").R for rows in sides)
    return one @ other.T


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
    return correlations_of(Paired(x, y), variance)


def correlations_of(pair: Paired, variance: float | None = None) -> torch.Tensor | None:
    """The same."""
    if pair.constant:
        return None
    dim = max(pair.x.shape[1], pair.y.shape[1])
    if variance is not None and len(pair) > dim:
        found = _between_leading(pair.moments if len(pair) > max(MANY, 4 * dim) else pair.exact.moments, variance)
    else:
        place = pair.device if len(pair) <= MANY_ROWS else pair.x.device  # the decomposition holds a few copies of them
        bases = [_basis(rows.to(place), variance) for rows in (pair.x, pair.y)]
        found = bases[0].T @ bases[1]
    return None if len(pair) - 1 <= max(found.shape) else torch.linalg.svdvals(found).clamp(0, 1)


def _basis(rows: torch.Tensor, variance: float | None) -> torch.Tensor:
    """(N, k) orthonormal principal components."""
    left, values, _ = torch.linalg.svd(centre(rows.detach().double()), full_matrices=False)
    kept = int((values > noise_level(rows)).sum())  # a LayerNorm removes a direction, which rounding brings back
    if variance is not None:
        share = values.square().cumsum(0) / values.square().sum()
        kept = min(kept, int((share < variance).sum()) + 1)
    return left[:, :kept]


BLOCKS = 32  # of samples, that halves are put together from


def svcca_error(pair: Paired, variance: float, draws: int, seed: int) -> float | None:
    """Standard error of the mean of those correlations, from its values on random halves of the samples (for halves, the
    delete-d jackknife needs no factor; Shao and Wu 1989). A half is 16 of 32 random blocks, whose moments are summed: the samples
    are multiplied once, and not in every half. None for few samples.

    How each sample moves the value would not do: the number of directions jumps.
    """
    count, d, e = len(pair), pair.x.shape[1], pair.y.shape[1]
    if count <= 2 * MANY or count <= 8 * max(d, e) or pair.sums.is_constant():
        return None
    generator = torch.Generator().manual_seed(seed)
    blocks = torch.randperm(count, generator=generator).tensor_split(BLOCKS)
    sizes = torch.tensor([len(rows) for rows in blocks])
    of_blocks = torch.stack([_block(*pair.centred_at(rows)) for rows in blocks])  # (32, K)
    chosen = of_blocks.new_zeros(draws, BLOCKS, device="cpu")
    for row in chosen:
        row[torch.randperm(BLOCKS, generator=generator)[: BLOCKS // 2]] = 1
    values = []
    for some in chosen.split(8):  # halves at a time: those of 30 are a quarter of a gigabyte
        for n, half in zip((some @ sizes.to(some.dtype)).tolist(), some.to(pair.device) @ of_blocks, strict=True):
            a, b, xx, xy, yy = half.split([d, e, d * d, d * e, e * e])
            own = (xx.view(d, d) - a.outer(a) / n, xy.view(d, e) - a.outer(b) / n, yy.view(e, e) - b.outer(b) / n)
            values.append(_mean_correlation((own[0].float(), own[1].float(), own[2].float()), variance))
    return float(torch.stack(values).std())


def _block(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Sums and products of some samples, in a row: those of x, of y, x^T x, x^T y, y^T y."""
    return torch.cat([x.sum(0), y.sum(0), *(product.flatten() for product in (x.T @ x, x.T @ y, y.T @ y))])


def _mean_correlation(of_half: Moments, variance: float) -> torch.Tensor:
    """Mean of the canonical correlations, which are the roots of the eigenvalues of C^T C: found in half the time of C's own. In
    fp32: a spread needs no more digits.
    """
    c = _between_leading(of_half, variance)
    small = c.T @ c if c.shape[1] <= c.shape[0] else c @ c.T
    return torch.linalg.eigvalsh(small).clamp(0, 1).sqrt().mean()


def _between_leading(of_rows: Moments, variance: float) -> torch.Tensor:
    """C (k, l), whose singular values are the canonical correlations of the leading directions, which hold this share of each
    side's variance.
    """
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
