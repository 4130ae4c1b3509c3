"""A layer with a scale and a shift behind it."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from riftcli.functional.precision import at_least_fp32


class Scaled(nn.Module):
    """scale * base(x) + shift, per output channel; no shift where the base has no bias that it could be folded into (CLIP)."""

    def __init__(self, base: nn.Linear | nn.LayerNorm | nn.Conv2d, init: str) -> None:
        super().__init__()
        self.base: Any = base
        width = base.weight.shape[0]
        like: Any = {"device": base.weight.device, "dtype": base.weight.dtype}
        self.ssf_scale = nn.Parameter(torch.ones(width, **like))
        self.ssf_shift = nn.Parameter(torch.zeros(width, **like)) if base.bias is not None else None
        if init == "noise":
            nn.init.normal_(self.ssf_scale, 1.0, 0.02)
            if self.ssf_shift is not None:
                nn.init.normal_(self.ssf_shift, 0.0, 0.02)

    @property
    def weight(self) -> torch.Tensor:
        """The base layer's weight: timm looks at its type."""
        return self.base.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """What the base layer takes -> the same shape that it gives; channels are last, or first after a convolution."""
        y = self.base(x)
        shape = (1, -1, 1, 1) if isinstance(self.base, nn.Conv2d) else (-1,)
        # fp32: near 1 a bf16 scale moves in steps of 1/128, and nothing would change for many steps
        scaled = at_least_fp32(y) * self.ssf_scale.view(shape)
        return (scaled if self.ssf_shift is None else scaled + self.ssf_shift.view(shape)).to(y.dtype)

    @torch.no_grad()
    def merged(self) -> nn.Module:
        """The base layer with scale and shift folded into its weight and bias."""
        layer = self.base
        layer.weight.mul_(self.ssf_scale.view(-1, *[1] * (layer.weight.dim() - 1)))
        if self.ssf_shift is not None:
            layer.bias.mul_(self.ssf_scale).add_(self.ssf_shift)
        return layer
