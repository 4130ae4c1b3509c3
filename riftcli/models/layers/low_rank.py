"""A linear layer with low-rank updates of ranges of its rows."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from riftcli.functional.precision import at_least_fp32
from riftcli.models.surgery import plain_linear


class LoraLinear(nn.Module):
    """y = W x + b, with the update of each row range added; step 0 is W exactly, because B starts at zero."""

    def __init__(self, base: nn.Linear, rows: list[tuple[int, int]], rank: int, scale: float, dropout: float, dora: bool) -> None:
        super().__init__()
        self.base, self.rows, self.rank, self.scale = base, rows, rank, scale
        like: Any = {"device": base.weight.device, "dtype": base.weight.dtype}
        self.lora_A = nn.Parameter(torch.empty(rank * len(rows), base.in_features, **like))  # the slices' factors in a column
        self.lora_B = nn.ParameterList([nn.Parameter(torch.zeros(stop - start, rank, **like)) for start, stop in rows])
        for part in self.lora_A.data.split(rank):
            nn.init.kaiming_uniform_(part, a=math.sqrt(5))
        self.dropout = nn.Dropout(dropout)
        self.updates = True  # whether they are added
        self.lora_m: nn.ParameterList | None = None
        if dora:
            norms = [base.weight[start:stop].norm(dim=1) for start, stop in rows]
            self.lora_m = nn.ParameterList([nn.Parameter(norm.detach().clone()) for norm in norms])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., in) -> (..., out)."""
        if not self.updates:
            return self.base(x)
        low = F.linear(self.dropout(x), self.lora_A).split(self.rank, dim=-1)
        if self.lora_m is None:
            y = self.base(x)
            for (start, stop), b, part in zip(self.rows, self.lora_B, low, strict=True):
                y.narrow(-1, start, stop - start).add_(F.linear(part, b), alpha=self.scale)
            return y
        y = F.linear(x, self.base.weight)
        pieces, end = [], 0
        for i, (start, stop) in enumerate(self.rows):
            turned = y[..., start:stop] + self.scale * F.linear(low[i], self.lora_B[i])
            wide = at_least_fp32(turned)  # a bf16 stretch near 1 moves in steps of 1/128
            pieces += [y[..., end:start], (wide * self._stretch(i)).to(turned.dtype)]
            end = stop
        y = torch.cat([*pieces, y[..., end:]], dim=-1)
        return y if self.base.bias is None else y + self.base.bias.to(y.dtype)

    def _stretch(self, i: int) -> torch.Tensor:
        """m / ||W + BA|| of each row; the norm is detached, as in the paper (section 4.3)."""
        assert self.lora_m is not None
        start, stop = self.rows[i]
        with torch.no_grad(), torch.autocast(self.lora_A.device.type, enabled=False):
            norm = (self.base.weight[start:stop] + self.update(i)).norm(dim=1)
        return self.lora_m[i] / norm

    def update(self, i: int) -> torch.Tensor:
        """scale * B A of one row range; (rows, in)."""
        return self.scale * self.lora_B[i] @ self.lora_A[i * self.rank : (i + 1) * self.rank]

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """The layer with its update folded in."""
        weight = self.base.weight.detach().clone()
        for i, (start, stop) in enumerate(self.rows):
            weight[start:stop] += self.update(i)
            if self.lora_m is not None:
                weight[start:stop] *= self._stretch(i)[:, None]
        return plain_linear(weight, self.base.bias)
