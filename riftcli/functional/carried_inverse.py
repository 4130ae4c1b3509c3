"""Products with a Cayley rotation without a solve: the inverse is carried along while the rotation moves.

A = I + K with K = W - W^T. On a GPU a solve with A is hundreds of small dependent steps; what follows is a dozen products. With
Y close to A^-1 from the step before, each Newton-Schulz round Y <- Y + Y (I - A Y) squares the error I - A Y, and each
refinement Z <- Z + (R - Z A^T) Y^T multiplies that of a solution by it once more (Higham, Accuracy and Stability of Numerical
Algorithms, 2002, ch. 12 and 14.5).

How far Y is off to begin with depends on how far W moved alone: ||I - A Y_old||_2 <= ||K - K_old||_2, for ||A^-1||_2 <= 1. So
the error can be told, and where it is too large, `unsafe` says so: then an inverse is computed anew.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from riftcli.functional.precision import full_precision

ROUNDS = 3  # of Newton-Schulz after every step of the optimizer
REFINEMENTS = 2  # of every solution
LIMIT = 0.05  # ||I - A Y||_F before the last round: after it 0.05^2, of a solution that is refined twice 0.05^6 = 2e-8


def follow(weight: torch.Tensor, inverse: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The inverse after W has moved; (D, D), (D, D) -> (D, D) and ||I - A Y||_F before the last round, ()."""
    with full_precision(weight.device), torch.no_grad():
        skew = weight - weight.T
        eye = torch.eye(len(skew), dtype=skew.dtype, device=skew.device)
        for _ in range(ROUNDS):
            error = eye - inverse - skew @ inverse
            inverse = torch.addmm(inverse, inverse, error)
        return inverse, torch.linalg.matrix_norm(error)


def unsafe(error: torch.Tensor) -> torch.Tensor:
    """Whether `follow` did not get close enough; () -> () bool. It is not compared on the host, which would wait for it."""
    return ~(error <= LIMIT)  # also for NaN


def inverse_of(weight: torch.Tensor) -> torch.Tensor:
    """(I + K)^-1 by LU; (D, D) -> (D, D). Never singular, so no solver is asked whether it was."""
    with full_precision(weight.device), torch.no_grad():
        skew = weight - weight.T
        return torch.linalg.inv_ex(torch.eye(len(skew), dtype=skew.dtype, device=skew.device) + skew).inverse.contiguous()


def rotated(rows: torch.Tensor, weight: torch.Tensor, inverse: torch.Tensor) -> torch.Tensor:
    """rows @ Q^T = 2 R A^-T - R with Q = A^-1 (I - K); differentiable in rows and W; (n, D), (D, D), (D, D) -> (n, D)."""
    return _Rotated.apply(rows, weight, inverse)


def _solved(rows: torch.Tensor, skew: torch.Tensor, inverse: torch.Tensor) -> torch.Tensor:
    """Z with Z (I - K) = R, refined; `inverse` is close to (I - K)^-1; (n, D), (D, D), (D, D) -> (n, D)."""
    found = rows @ inverse
    for _ in range(REFINEMENTS):
        found = torch.addmm(found, rows - found + found @ skew, inverse)
    return found


class _Rotated(Function):
    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, weight: torch.Tensor, inverse: torch.Tensor) -> torch.Tensor:
        with full_precision(rows.device):
            skew = weight - weight.T
            found = _solved(rows, skew, inverse.T)  # Z A^T = R, A^T = I - K
        ctx.save_for_backward(skew, inverse, found)
        return 2 * found - rows

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None, None]:
        skew, inverse, found = ctx.saved_tensors
        with full_precision(grad.device):
            pulled = _solved(grad, -skew, inverse)  # S A = G
            of_rows = 2 * pulled - grad if ctx.needs_input_grad[0] else None
            of_weight = None
            if ctx.needs_input_grad[1]:
                of_skew = -2 * (pulled.T @ found)
                of_weight = of_skew - of_skew.T
        return of_rows, of_weight, None
