"""The precision that losses and small matrices are computed in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def at_least_fp32(tensor: torch.Tensor) -> torch.Tensor:
    """Half precision widened; fp64 kept: a line search stalls on a loss that is rounded to fp32."""
    import torch

    return tensor if tensor.dtype == torch.float64 else tensor.float()


@contextmanager
def products_in(precision: str) -> Iterator[None]:
    """How GPUs multiply fp32: ieee, or tf32 (factors rounded to 10 bits, added up in fp32)."""
    import torch

    products = torch.backends.cuda.matmul
    before = products.fp32_precision
    products.fp32_precision = precision
    try:
        yield
    finally:
        products.fp32_precision = before


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Products of fp32 in fp32, whatever autocast or TF32 would make of them."""
    import torch

    with products_in("ieee"), torch.autocast(device.type, enabled=False):
        yield
