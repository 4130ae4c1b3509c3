"""Linear centred kernel alignment: for one batch inside the graph, and streamed for a whole split.

CKA(X, Y) = ||X~^T Y~||_F^2 / (||X~^T X~||_F ||Y~^T Y~||_F) with centred X~, Y~ (RIFT paper Eq. 2; Kornblith et al. 2019).
It is 1 for features equal up to rotation, shift and scale. The plug-in value is biased upwards when n is not much larger
than D (independent white 768-d features give 0.86 at n = 128); the debiased one uses the unbiased HSIC of Song et al. (2012).
"""

from __future__ import annotations

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


Moments = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # X^T X (D, D), X^T Y (D, E), Y^T Y (E, E) of centred rows
BLOCK = 96  # columns of X^T X at a time, of which those before them are known already


class _Side:
    """Sums over samples of one side's rows a: what all moments of its linear kernel, and of it with another one, are made of."""

    def __init__(self, dim: int, device: torch.device) -> None:
        self.sums = torch.zeros(3, dim, dtype=torch.float64, device=device)  # sum of a, of a |x|^2, of a |y|^2
        self._products = torch.zeros(dim, dim, dtype=torch.float64, device=device)  # sum a a^T, on and above the diagonal

    def add(self, rows: torch.Tensor, beside: torch.Tensor) -> None:
        self.sums += beside.T @ rows
        for start in range(0, rows.shape[1], BLOCK):
            own = rows[:, start : start + BLOCK]
            self._products[start : start + BLOCK, start:] += own.T @ rows[:, start:]

    def products(self) -> torch.Tensor:
        """sum a a^T; (D, D)."""
        return self._products.triu() + self._products.triu(1).T


class StreamingCka:
    """Biased and debiased linear CKA of paired rows that arrive in chunks, in O(D^2) memory.

    The kernels are shifted by the first chunk's mean: CKA does not change, and the sums do not cancel. Products of a chunk are
    taken in the rows' own precision (a few thousand fp32 terms: an error of 1e-7), their sums over chunks in fp64. They lie where
    the first chunk does.
    """

    def __init__(self) -> None:
        self._shift: tuple[torch.Tensor, torch.Tensor] | None = None
        self.n = 0  # rows seen so far

    def update(self, x: torch.Tensor, y: torch.Tensor) -> None:
        """Add paired rows; (k, D), (k, E)."""
        assert x.shape[0] == y.shape[0], "CKA compares the same samples"
        exact = torch.float64 in (x.dtype, y.dtype)
        x, y = (rows.detach().to(_device(x), torch.float64 if exact else torch.float32) for rows in (x, y))
        self._eps = torch.finfo(x.dtype).eps
        if x.shape[0] == 0:
            return
        if self._shift is None:
            self._shift = (x.mean(0, dtype=torch.float64), y.mean(0, dtype=torch.float64))
            self._sides = (_Side(x.shape[1], x.device), _Side(y.shape[1], x.device))
            self._cross = torch.zeros(x.shape[1], y.shape[1], dtype=torch.float64, device=x.device)
            self._lengths = torch.zeros(3, 3, dtype=torch.float64, device=x.device)  # sums of products of 1, |x|^2, |y|^2
        x, y = x - self._shift[0].to(x.dtype), y - self._shift[1].to(y.dtype)
        lengths = [torch.linalg.vector_norm(rows, dim=1).square() for rows in (x, y)]
        beside = torch.stack([torch.ones_like(lengths[0]), *lengths], 1)  # (k, 3)
        self._lengths += beside.double().T @ beside.double()
        for side, rows in zip(self._sides, (x, y), strict=True):
            side.add(rows, beside)
        self._cross += x.T @ y
        self.n += len(x)

    def moments(self) -> Moments:
        """Products of the centred rows, in fp64."""
        return self._centred(0, 0), self._centred(0, 1), self._centred(1, 1)

    def biased(self) -> float | None:
        """The papers' value; None when one side is constant or n < 2."""
        if self.n < 2 or self.is_constant():
            return None
        return _ratio(*(self._centred(i, j).square().sum() for i, j in ((0, 1), (0, 0), (1, 1))))

    def debiased(self) -> float | None:
        """The unbiased-HSIC value, possibly slightly negative; None when undefined or n < 4."""
        if self.n < 4 or self.is_constant():
            return None
        return _ratio(self._hsic(0, 1), self._hsic(0, 0), self._hsic(1, 1))

    def _products(self, i: int, j: int) -> torch.Tensor:
        """sum a b^T of two sides; (D, E)."""
        return self._sides[i].products() if i == j else self._cross

    def _centred(self, i: int, j: int) -> torch.Tensor:
        sum_a, sum_b = self._sides[i].sums[0], self._sides[j].sums[0]
        return self._products(i, j) - torch.outer(sum_a, sum_b) / self.n

    def _hsic(self, i: int, j: int) -> torch.Tensor:
        """HSIC_1 of Song et al. 2012, Eq. 5, of the linear kernels of two sides; ()."""
        n, cross, (a, b) = self.n, self._products(i, j), (self._sides[i].sums, self._sides[j].sums)
        sum_a, a_by_b, sum_b, b_by_a = a[0], a[1 + j], b[0], b[1 + i]
        squares = self._lengths[1 + i, 1 + j]
        # With K_ij = <a_i, a_j> for i != j and 0 on the diagonal, the row sums are a_i . sum_a - |a_i|^2, hence:
        trace = cross.square().sum() - squares
        rows = sum_a @ cross @ sum_b - sum_a @ a_by_b - sum_b @ b_by_a + squares
        total = (sum_a @ sum_a - self._lengths[0, 1 + i]) * (sum_b @ sum_b - self._lengths[0, 1 + j])
        return (trace + total / ((n - 1) * (n - 2)) - 2 / (n - 2) * rows) / (n * (n - 3))

    def is_constant(self) -> bool:
        """Does one side differ between samples by no more than rounding?"""
        assert self._shift is not None
        for i, (shift, side) in enumerate(zip(self._shift, self._sides, strict=True)):
            total, squares = side.sums[0], self._lengths[0, 1 + i]
            raw = squares + 2 * shift @ total + self.n * shift @ shift  # of the rows before the shift
            if not float(squares - total @ total / self.n) > (ROUNDINGS * self._eps) ** 2 * float(raw):
                return True
        return False


def _device(rows: torch.Tensor) -> torch.device:
    """Where sums in fp64 can be held: Apple's GPUs have none."""
    return torch.device("cpu") if rows.device.type == "mps" else rows.device


def _ratio(cross: torch.Tensor, own_x: torch.Tensor, own_y: torch.Tensor) -> float | None:
    norm = (own_x.clamp_min(0) * own_y.clamp_min(0)).sqrt()
    return float(cross / norm) if float(norm) > 0 else None


def cka(x: torch.Tensor, y: torch.Tensor, debiased: bool = False, chunk: int = 2048) -> float | None:
    """CKA of two whole feature tables, streamed; (N, D), (N, E). None where it is undefined."""
    stream = StreamingCka()
    for rows_x, rows_y in zip(x.split(chunk), y.split(chunk), strict=True):
        stream.update(rows_x, rows_y)
    return stream.debiased() if debiased else stream.biased()


GRAMS = 2**29  # bytes of kernels (N, N) that are held for a table of layers
CHUNK = 4096  # rows that are multiplied in their own precision; sums of the products are in fp64


def cka_table(before: list[torch.Tensor], after: list[torch.Tensor], device: torch.device | None = None) -> torch.Tensor:
    """Biased linear CKA of every layer of one model with every layer of the other; L, M tables (N, D) -> (L, M) fp64.

    Of few samples by kernels (N, N), one for each layer, of many by products (D, D), one for each pair of layers. Computed on
    `device`, by default where the tables are. NaN where a layer is constant (e.g. a class token before it has seen the image).
    """
    kind = torch.float64 if any(rows.dtype == torch.float64 for rows in (*before, *after)) else torch.float32
    ours, theirs = ([_centred(rows.to(device or rows.device), kind) for rows in layers] for layers in (before, after))
    every, n, width = [*ours, *theirs], len(before[0]), max(rows.shape[1] for rows in (*before, *after))
    kernels = n * len(every) < width * len(ours) * len(theirs) and 8 * n * n * len(every) <= GRAMS
    if kernels:
        grams = [torch.stack([(rows @ rows.T).double().flatten() for rows in side]) for side in (ours, theirs)]
        top, norms = grams[0] @ grams[1].T, [torch.linalg.norm(gram, dim=1) for gram in grams]
    else:
        top = torch.stack([torch.stack([_product(x, y).square().sum() for y in theirs]) for x in ours])
        norms = [torch.stack([torch.linalg.norm(_product(rows, rows)) for rows in side]) for side in (ours, theirs)]
    return (top / norms[0][:, None] / norms[1]).cpu()


def _centred(rows: torch.Tensor, kind: torch.dtype) -> torch.Tensor:
    return rows.to(kind) * torch.nan if is_constant(rows) else rows.to(kind) - rows.mean(0, dtype=torch.float64).to(kind)


def _product(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """X^T Y in fp64; (N, D), (N, E) -> (D, E)."""
    total = torch.zeros(x.shape[1], y.shape[1], dtype=torch.float64, device=x.device)
    for a, b in zip(x.split(CHUNK), y.split(CHUNK), strict=True):
        total += a.T @ b
    return total
