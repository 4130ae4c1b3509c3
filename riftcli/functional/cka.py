"""Linear centred kernel alignment: for one batch inside the graph, and streamed for a whole split.

CKA(X, Y) = ||X~^T Y~||_F^2 / (||X~^T X~||_F ||Y~^T Y~||_F) with centred X~, Y~ (RIFT paper Eq. 2; Kornblith et al. 2019).
It is 1 for features equal up to rotation, shift and scale. The plug-in value is biased upwards when n is not much larger
than D (independent white 768-d features give 0.86 at n = 128); the debiased one uses the unbiased HSIC of Song et al. (2012).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from riftcli.functional.covariance import centre
from riftcli.functional.rounding import ROUNDINGS, is_constant

_LEAST = 1e-6  # of the denominator for rows of norm 1, which is 1 / D or more unless one side is constant


def linear_cka(x: torch.Tensor, y: torch.Tensor, debiased: bool = False) -> torch.Tensor:
    """CKA of two feature batches, differentiable; (n, D), (n, E) -> (). Debiased needs n >= 4.

    Works on whichever of Gram (n x n) or covariance (D x E) matrices is smaller.
    """
    x, y = _of_norm_1(x), _of_norm_1(y)
    if debiased:
        gram_x, gram_y = _hollow(x @ x.T), _hollow(y @ y.T)
        cross = _hsic_unbiased(gram_x, gram_y)
        norm = (_hsic_unbiased(gram_x, gram_x) * _hsic_unbiased(gram_y, gram_y)).clamp_min(0).sqrt()
        return cross / norm.clamp_min(_LEAST)
    if x.shape[0] < max(x.shape[1], y.shape[1]):
        gram_x, gram_y = x @ x.T, y @ y.T
        return (gram_x * gram_y).sum() / (torch.linalg.norm(gram_x) * torch.linalg.norm(gram_y)).clamp_min(_LEAST)
    cross_norm = torch.linalg.norm(x.T @ y)
    return cross_norm**2 / (torch.linalg.norm(x.T @ x) * torch.linalg.norm(y.T @ y)).clamp_min(_LEAST)


def _of_norm_1(rows: torch.Tensor) -> torch.Tensor:
    """Centred, and scaled to Frobenius norm 1 unless they are constant: what is added to a denominator must not know the scale.

    The scale is a constant in backward: CKA does not depend on it, so no gradient goes through it.
    """
    centred, exact = centre(rows), rows.detach()
    least = ROUNDINGS * torch.finfo(rows.dtype).eps * torch.linalg.norm(exact)
    norm = torch.linalg.norm(centred.detach()).maximum(least)
    return centred / norm.clamp_min(torch.finfo(rows.dtype).tiny)


def _hollow(gram: torch.Tensor) -> torch.Tensor:
    return gram - torch.diag_embed(gram.diagonal())


def _hsic_unbiased(k: torch.Tensor, m: torch.Tensor) -> torch.Tensor:
    """n (n - 3) HSIC_1 of two Gram matrices with zero diagonal (Song et al. 2012, Eq. 5); (n, n), (n, n) -> ()."""
    n = k.shape[0]
    trace = (k * m).sum()
    sums = k.sum() * m.sum() / ((n - 1) * (n - 2))
    rows = 2 / (n - 2) * (k.sum(0) @ m.sum(0))
    return trace + sums - rows


@dataclass
class _Moments:
    """Sums over samples that give the unbiased HSIC of linear kernels <a, a'>, <b, b'> in one pass."""

    cross: torch.Tensor  # sum a b^T, (D, E)
    a_by_b: torch.Tensor  # sum a |b|^2, (D,)
    b_by_a: torch.Tensor  # sum b |a|^2, (E,)
    squares: torch.Tensor  # sum |a|^2 |b|^2, ()

    @classmethod
    def zeros(cls, d: int, e: int) -> _Moments:
        zero = torch.zeros
        f64 = torch.float64
        return cls(zero(d, e, dtype=f64), zero(d, dtype=f64), zero(e, dtype=f64), zero((), dtype=f64))

    def add(self, a: torch.Tensor, b: torch.Tensor) -> None:
        a2, b2 = a.square().sum(1), b.square().sum(1)
        self.cross += a.T @ b
        self.a_by_b += a.T @ b2
        self.b_by_a += b.T @ a2
        self.squares += a2 @ b2

    def hsic(self, n: int, sum_a: torch.Tensor, sum_b: torch.Tensor, a2: torch.Tensor, b2: torch.Tensor) -> torch.Tensor:
        # With K_ij = <a_i, a_j> for i != j and 0 on the diagonal, the row sums are a_i . sum_a - |a_i|^2, hence:
        trace = self.cross.square().sum() - self.squares
        rows = sum_a @ self.cross @ sum_b - sum_a @ self.a_by_b - sum_b @ self.b_by_a + self.squares
        total = (sum_a @ sum_a - a2) * (sum_b @ sum_b - b2)
        return (trace + total / ((n - 1) * (n - 2)) - 2 / (n - 2) * rows) / (n * (n - 3))


class StreamingCka:
    """Biased and debiased linear CKA of paired rows that arrive in chunks, in O(D^2) memory.

    The kernels are shifted by the first chunk's mean: CKA does not change, and the sums do not cancel. Products of a chunk are
    taken in the rows' own precision (a few thousand fp32 terms: an error of 1e-7), their sums over chunks in fp64.
    """

    def __init__(self) -> None:
        self.n = 0
        self._shift: tuple[torch.Tensor, torch.Tensor] | None = None

    def update(self, x: torch.Tensor, y: torch.Tensor) -> None:
        """Add paired rows; (k, D), (k, E)."""
        assert x.shape[0] == y.shape[0], "CKA compares the same samples"
        exact = torch.float64 in (x.dtype, y.dtype)
        x, y = (rows.detach().cpu().to(torch.float64 if exact else torch.float32) for rows in (x, y))
        self._eps = torch.finfo(x.dtype).eps
        if x.shape[0] == 0:
            return
        if self._shift is None:
            d, e = x.shape[1], y.shape[1]
            self._shift = (x.double().mean(0), y.double().mean(0))
            self._sum_x, self._sum_y = torch.zeros(d, dtype=torch.float64), torch.zeros(e, dtype=torch.float64)
            self._x2, self._y2 = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
            self._xy, self._xx, self._yy = _Moments.zeros(d, e), _Moments.zeros(d, d), _Moments.zeros(e, e)
        x, y = x - self._shift[0].to(x.dtype), y - self._shift[1].to(y.dtype)
        self.n += x.shape[0]
        self._sum_x += x.sum(0)
        self._sum_y += y.sum(0)
        self._x2 += x.square().sum()
        self._y2 += y.square().sum()
        self._xy.add(x, y)
        self._xx.add(x, x)
        self._yy.add(y, y)

    def biased(self) -> float | None:
        """The papers' value; None when one side is constant or n < 2."""
        if self.n < 2 or self._is_constant():
            return None
        mean_x, mean_y = self._sum_x / self.n, self._sum_y / self.n
        xy = self._xy.cross - self.n * torch.outer(mean_x, mean_y)
        xx = self._xx.cross - self.n * torch.outer(mean_x, mean_x)
        yy = self._yy.cross - self.n * torch.outer(mean_y, mean_y)
        return _ratio(xy.square().sum(), xx.square().sum(), yy.square().sum())

    def debiased(self) -> float | None:
        """The unbiased-HSIC value, possibly slightly negative; None when undefined or n < 4."""
        if self.n < 4 or self._is_constant():
            return None
        x = (self._sum_x, self._x2)
        y = (self._sum_y, self._y2)
        cross = self._xy.hsic(self.n, x[0], y[0], x[1], y[1])
        own_x = self._xx.hsic(self.n, x[0], x[0], x[1], x[1])
        own_y = self._yy.hsic(self.n, y[0], y[0], y[1], y[1])
        return _ratio(cross, own_x, own_y)

    def _is_constant(self) -> bool:
        """Does one side differ between samples by no more than rounding?"""
        assert self._shift is not None
        for shift, total, squares in zip(self._shift, (self._sum_x, self._sum_y), (self._x2, self._y2), strict=True):
            raw = squares + 2 * shift @ total + self.n * shift @ shift  # of the rows before the shift
            if not float(squares - total @ total / self.n) > (ROUNDINGS * self._eps) ** 2 * float(raw):
                return True
        return False


def _ratio(cross: torch.Tensor, own_x: torch.Tensor, own_y: torch.Tensor) -> float | None:
    norm = (own_x.clamp_min(0) * own_y.clamp_min(0)).sqrt()
    return float(cross / norm) if float(norm) > 0 else None


def cka(x: torch.Tensor, y: torch.Tensor, debiased: bool = False, chunk: int = 2048) -> float | None:
    """CKA of two whole feature tables, streamed; (N, D), (N, E). None where it is undefined."""
    stream = StreamingCka()
    for rows_x, rows_y in zip(x.split(chunk), y.split(chunk), strict=True):
        stream.update(rows_x, rows_y)
    return stream.debiased() if debiased else stream.biased()


def cka_table(before: list[torch.Tensor], after: list[torch.Tensor]) -> torch.Tensor:
    """Biased linear CKA of every layer of one model with every layer of the other, in fp64; L, M tables -> (L, M).

    NaN where a layer is constant (e.g. a class token before it has seen the image).
    """
    ours, theirs = ([_normed(rows) for rows in layers] for layers in (before, after))
    return torch.stack([torch.stack([(x.T @ y).square().sum() for y in theirs]) for x in ours])


def _normed(rows: torch.Tensor) -> torch.Tensor:
    """Centred, and scaled such that the squared norm of a product of two is their CKA."""
    if is_constant(rows):
        return rows.double() * torch.nan
    rows = centre(rows.double())
    norm = torch.linalg.norm(rows.T @ rows) if rows.shape[0] > rows.shape[1] else torch.linalg.norm(rows @ rows.T)
    return rows / norm.sqrt()
