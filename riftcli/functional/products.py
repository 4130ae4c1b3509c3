"""Products of D x D matrices whose gradient takes one more such product, where autograd, which does not see that they are
symmetric, takes two or three.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd import Function
from torch.autograd.function import once_differentiable


def congruence(w: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
    """W^T S W of a symmetric S, which is a constant; (D, E), (D, D) -> (E, E)."""
    return _Congruence.apply(w, s)


def gram(w: torch.Tensor) -> torch.Tensor:
    """W W^T; (D, E) -> (D, D)."""
    return _Gram.apply(w)


class _Congruence(Function):
    @staticmethod
    def forward(ctx: Any, w: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
        turned = s @ w
        ctx.save_for_backward(turned)
        return w.T @ turned

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        (turned,) = ctx.saved_tensors
        return turned @ (grad + grad.T), None


class _Gram(Function):
    @staticmethod
    def forward(ctx: Any, w: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(w)
        return w @ w.T

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        (w,) = ctx.saved_tensors
        return (grad + grad.T).to(w.dtype) @ w  # under autocast the product was of less precision
