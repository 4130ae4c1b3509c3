"""Learnable orthogonal (or nearly orthogonal) matrices Q: Cayley, block-diagonal, butterfly, and softly constrained.

Every one is a module with one parameter `weight`, starts at the identity exactly, and is computed in at least fp32 outside
autocast: in bf16 Q is not orthogonal.
"""

from __future__ import annotations

import torch
from torch import nn

from riftcli.functional import carried_inverse
from riftcli.functional.precision import at_least_fp32
from riftcli.functional.products import gram


class Rotation(nn.Module):
    """What all of them can do. rows @ Q^T is the only product that a loss needs, so Q itself is seldom formed."""

    weight: nn.Parameter

    def rotate(self, rows: torch.Tensor) -> torch.Tensor:
        """rows @ Q^T; (n, D) -> (n, D)."""
        raise NotImplementedError

    def matrix(self) -> torch.Tensor:
        """Q; (D, D)."""
        return self.rotate(torch.eye(self.dim, dtype=self.weight.dtype, device=self.weight.device)).T

    @property
    def dim(self) -> int:
        """D."""
        return self.weight.shape[-1]

    @torch.no_grad()
    def set_weight(self, weight: torch.Tensor) -> None:
        """Put another weight in place of its own."""
        self.weight.copy_(weight)

    def constraint(self) -> torch.Tensor | None:
        """What is added to a loss to keep Q near orthogonal; None where it is orthogonal by construction."""
        return None

    @torch.no_grad()
    def distance_from_identity(self) -> torch.Tensor:
        """||Q - I||_F / sqrt(D): 0 at the start, sqrt(2) for an unrelated rotation; ()."""
        q = self.matrix()
        return torch.linalg.norm(q - torch.eye(len(q), dtype=q.dtype, device=q.device)) / len(q) ** 0.5

    @torch.no_grad()
    def orthogonality_error(self) -> torch.Tensor:
        """max |Q^T Q - I|; ()."""
        q = self.matrix()
        return (q.T @ q - torch.eye(len(q), dtype=q.dtype, device=q.device)).abs().max()


class CayleyRotation(Rotation):
    """Q = (I + K)^-1 (I - K), K = W - W^T: every rotation without the eigenvalue -1.

    A reflection that commutes with Sigma_0 would not change Q^T Sigma_0 Q, so nothing is lost. One LU solve, where a matrix
    exponential costs ten times as much and a Householder product collapses to zero under weight decay.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(dim, dim))

    def _sides(self) -> tuple[torch.Tensor, torch.Tensor]:
        """I + K and I - K; K is skew-symmetric, so that neither is ever singular, and no solver is asked whether it was: on a GPU
        that answer is waited for.
        """
        skew = self.weight - self.weight.T
        eye = torch.eye(skew.shape[0], dtype=skew.dtype, device=skew.device)
        return eye + skew, eye - skew

    def matrix(self) -> torch.Tensor:
        """Q; (D, D)."""
        with torch.autocast(self.weight.device.type, enabled=False):
            plus, minus = self._sides()
            return torch.linalg.solve_ex(plus, minus).result

    def rotate(self, rows: torch.Tensor) -> torch.Tensor:
        """rows @ Q^T without forming Q: a solve with n right-hand sides instead of D; (n, D) -> (n, D)."""
        with torch.autocast(self.weight.device.type, enabled=False):
            plus, minus = self._sides()
            return torch.linalg.solve_ex(plus, minus @ rows.T).result.T


class CarriedRotation(CayleyRotation):
    """The same Q without a solve at every step: the inverse of I + K is carried along (functional/carried_inverse.py).

    Whoever moves the weight calls `follow` then. `error` () says how well that went, and `solve` makes up for it.
    """

    inverse: torch.Tensor  # (D, D)
    error: torch.Tensor  # ()

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        self.register_buffer("inverse", torch.eye(dim))
        self.register_buffer("error", torch.zeros(()))

    def set_weight(self, weight: torch.Tensor) -> None:
        """Put another weight in place of its own, which may be far from it."""
        super().set_weight(weight)
        self.solve()

    def follow(self) -> None:
        """After the weight has moved."""
        self.inverse, self.error = carried_inverse.follow(self.weight, self.inverse)

    def solve(self) -> None:
        """The inverse for the present weight, from nothing."""
        self.inverse, self.error = carried_inverse.inverse_of(self.weight), torch.zeros_like(self.error)

    def matrix(self) -> torch.Tensor:
        """Q; (D, D)."""
        return self.rotate(torch.eye(self.dim, dtype=self.weight.dtype, device=self.weight.device)).T

    def rotate(self, rows: torch.Tensor) -> torch.Tensor:
        """rows @ Q^T; (n, D) -> (n, D)."""
        return carried_inverse.rotated(rows.to(self.weight.dtype), self.weight, self.inverse)


class ButterflyRotation(Rotation):
    """Q^T = product of `factors` butterfly-permuted block-diagonal rotations (BOFT, Liu et al. 2023); one factor is OFT's
    block-diagonal rotation (Qiu et al. 2023).

    Blocks of `block_size` make D (block_size - 1) / 2 degrees of freedom a factor, where a full rotation has D (D - 1) / 2:
    eigenvectors can turn within a block only, in the basis that the features come in.
    """

    def __init__(self, dim: int, block_size: int, factors: int = 1) -> None:
        super().__init__()
        self.block_size, self._dim = block_size, dim
        self.weight = nn.Parameter(torch.zeros(factors, dim // block_size, block_size, block_size))
        orders = torch.stack([butterfly(dim, block_size, level) for level in range(factors)])
        self.register_buffer("order", orders, persistent=False)

    @property
    def dim(self) -> int:
        """D."""
        return self._dim

    def rotate(self, rows: torch.Tensor) -> torch.Tensor:
        """rows @ Q^T; (n, D) -> (n, D)."""
        order: torch.Tensor = self.order  # type: ignore[assignment]
        return apply_butterfly(rows, cayley(self.weight - self.weight.transpose(2, 3)), order)


class SoftRotation(Rotation):
    """Any matrix Q = W, held near the orthogonal ones by sigmoid(sharpness (x - threshold)) x, x = ||W W^T - I||_F
    (lambda-orthogonality, Eq. 6): free below the threshold, pulled back above it.

    threshold: in Frobenius units. The paper's 12 allows an RMS |s^2 - 1| of 0.53 at its width of 512; to allow the same at
    another width it grows with the root of the width, which is what None takes. sharpness is not stated there; 10 is ours.
    """

    def __init__(self, dim: int, threshold: float | None = None, sharpness: float = 10.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(dim))
        self.threshold = usual_threshold(dim) if threshold is None else threshold
        self.sharpness = sharpness

    def rotate(self, rows: torch.Tensor) -> torch.Tensor:
        """rows @ W^T; (n, D) -> (n, D)."""
        with torch.autocast(self.weight.device.type, enabled=False):
            return rows @ self.weight.T

    def constraint(self) -> torch.Tensor:
        """The penalty of the paper; its gradient at W = I, where x = 0, is 0."""
        with torch.autocast(self.weight.device.type, enabled=False):
            return soft_orthogonality(self.weight, self.threshold, self.sharpness)


def orthogonality_distance(weight: torch.Tensor) -> torch.Tensor:
    """x = ||W W^T - I||_F; (D, D) -> (). Its gradient at an orthogonal W is 0."""
    eye = torch.eye(len(weight), dtype=weight.dtype, device=weight.device)
    return torch.linalg.matrix_norm(gram(weight) - eye)


def soft_orthogonality(weight: torch.Tensor, threshold: float, sharpness: float) -> torch.Tensor:
    """sigmoid(sharpness (x - threshold)) x (lambda-orthogonality, Eq. 6); (D, D) -> ()."""
    x = orthogonality_distance(weight)
    return torch.sigmoid(sharpness * (x - threshold)) * x


def usual_threshold(width: int) -> float:
    """What the 12 of the lambda-orthogonality paper, at its width of 512, is at another: the same RMS |s^2 - 1| of 0.53."""
    return 12 * (width / 512) ** 0.5


def cayley(skew: torch.Tensor) -> torch.Tensor:
    """Rotations (I - K)(I + K)^-1 of skew-symmetric matrices (..., b, b), in at least fp32 outside autocast."""
    with torch.autocast(skew.device.type, enabled=False):
        wide = at_least_fp32(skew)
        eye = torch.eye(wide.shape[-1], device=wide.device, dtype=wide.dtype)
        return torch.linalg.solve_ex(eye + wide, eye - wide, left=False).result


def butterfly(width: int, size: int, level: int) -> torch.Tensor:
    """Order of the inputs at a level: in segments of size * 2^level, the even chunks of size / 2 come first, then the odd."""
    if level == 0:
        return torch.arange(width)
    half = size // 2
    chunks = torch.arange(width).view(-1, size * 2**level // half, half)  # (segments, chunks, half)
    return torch.cat([chunks[:, 0::2], chunks[:, 1::2]], 1).flatten()


def apply_butterfly(rows: torch.Tensor, turns: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """Row vectors times the product of the factors, the last factor first.

    rows (..., D), turns (factors, D / b, b, b), order (factors, D) as `butterfly` gives it -> (..., D).
    """
    for level in range(len(turns) - 1, -1, -1):
        back = order[level].argsort()
        parts = rows[..., back].unflatten(-1, (-1, turns.shape[-1]))
        rows = torch.einsum("...kb,kbc->...kc", parts, turns[level]).flatten(-2)[..., order[level]]
    return rows


def most_factors(width: int, size: int) -> int:
    """How many butterfly factors a width allows: each one doubles the segments, which must divide it."""
    levels = 1
    while width % (size * 2**levels) == 0:
        levels += 1
    return levels
