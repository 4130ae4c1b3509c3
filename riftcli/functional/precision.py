"""The precision that losses and small matrices are computed in."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def at_least_fp32(tensor: torch.Tensor) -> torch.Tensor:
    """Half precision widened; fp64 kept: a line search stalls on a loss that is rounded to fp32."""
    import torch

    return tensor if tensor.dtype == torch.float64 else tensor.float()
