"""A linear layer behind a block-diagonal rotation of its input."""

from __future__ import annotations

import torch
from torch import nn

from riftcli.functional.rotations import cayley
from riftcli.models.surgery import plain_linear


class OftLinear(nn.Module):
    """A linear layer behind a rotation; step 0 is the layer exactly, because the rotation starts at the identity."""

    def __init__(self, base: nn.Linear, size: int, eps: float | None) -> None:
        super().__init__()
        self.base, self.size, self.eps = base, size, eps
        # the strict upper triangles, row by row: PEFT's order
        shape = (base.in_features // size, size * (size - 1) // 2)
        self.oft_R = nn.Parameter(torch.zeros(shape, device=base.weight.device, dtype=base.weight.dtype))
        self.register_buffer("upper", torch.triu_indices(size, size, 1, device=base.weight.device), persistent=False)

    def skew(self) -> torch.Tensor:
        """(blocks, size, size), skew-symmetric, within the bound of COFT."""
        upper: torch.Tensor = self.upper  # type: ignore[assignment]
        skew = self.oft_R.new_zeros(len(self.oft_R), self.size, self.size)
        skew[:, upper[0], upper[1]] = self.oft_R
        skew = skew - skew.transpose(1, 2)
        if self.eps is None:
            return skew
        # ||R - I|| = ||2 K (I + K)^-1|| <= 2 ||K||, so a K within eps / 2 is enough
        norm = skew.flatten(1).norm(dim=1).clamp_min(1e-30)[:, None, None]
        return skew * (0.5 * self.eps / norm).clamp_max(1.0)

    def rotations(self) -> torch.Tensor:
        """(blocks, size, size), orthogonal."""
        return cayley(self.skew())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., in) -> (..., out)."""
        parts = x.unflatten(-1, (-1, self.size))
        turned = torch.einsum("...kb,kbc->...kc", parts, self.rotations().to(x.dtype))
        return self.base(turned.flatten(-2))

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """The layer with the rotation folded in: W' = W R^T of each block of columns."""
        parts = self.base.weight.unflatten(1, (-1, self.size))
        weight = torch.einsum("okc,kbc->okb", parts, self.rotations().to(parts.dtype)).flatten(1)
        return plain_linear(weight, self.base.bias)
