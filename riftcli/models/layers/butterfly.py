"""A linear layer behind butterfly rotations of its input."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from riftcli.functional.precision import at_least_fp32
from riftcli.functional.rotations import apply_butterfly, butterfly, cayley
from riftcli.models.surgery import plain_linear


class BoftLinear(nn.Module):
    """A linear layer behind butterfly rotations; step 0 is the layer exactly."""

    def __init__(self, base: nn.Linear, size: int, factors: int) -> None:
        super().__init__()
        self.base, self.size = base, size
        like: Any = {"device": base.weight.device, "dtype": base.weight.dtype}
        width = base.in_features
        self.boft_R = nn.Parameter(torch.zeros(factors, width // size, size, size, **like))  # only its skew part matters
        self.boft_s = nn.Parameter(torch.ones(base.out_features, 1, **like))
        orders = torch.stack([butterfly(width, size, level) for level in range(factors)]).to(base.weight.device)
        self.register_buffer("order", orders, persistent=False)

    def rotated(self, x: torch.Tensor) -> torch.Tensor:
        """Row vectors (..., in) times R, the last factor first."""
        order: torch.Tensor = self.order  # type: ignore[assignment]
        return apply_butterfly(x, cayley(0.5 * (self.boft_R - self.boft_R.transpose(2, 3))).to(x.dtype), order)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., in) -> (..., out)."""
        y = nn.functional.linear(self.rotated(x), self.base.weight)
        wide = at_least_fp32(y) * self.boft_s[:, 0]  # a bf16 scale near 1 moves in steps of 1/128
        return (wide if self.base.bias is None else wide + self.base.bias).to(y.dtype)

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """The layer with rotations and scale folded in."""
        eye = torch.eye(self.base.in_features, device=self.base.weight.device, dtype=self.base.weight.dtype)
        weight = self.base.weight @ self.rotated(eye).T * self.boft_s
        return plain_linear(weight, self.base.bias)
