"""Orthogonal matrices: the learnable rotation Q of RIFT."""

from __future__ import annotations

import torch
from torch import nn


class CayleyRotation(nn.Module):
    """A learnable orthogonal matrix Q = (I + K)^-1 (I - K), K = W - W^T, starting at the identity.

    The Cayley map reaches every rotation without the eigenvalue -1; a reflection that commutes with Sigma_0 would not
    change Q^T Sigma_0 Q, so nothing is lost. One LU solve, where a matrix exponential costs ten times as much and a
    Householder product collapses to zero under weight decay. Always fp32, outside autocast: in bf16 Q is not orthogonal.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(dim, dim))

    def _sides(self) -> tuple[torch.Tensor, torch.Tensor]:
        skew = self.weight - self.weight.T
        eye = torch.eye(skew.shape[0], dtype=skew.dtype, device=skew.device)
        return eye + skew, eye - skew

    def matrix(self) -> torch.Tensor:
        """Q; (D, D)."""
        with torch.autocast(self.weight.device.type, enabled=False):
            plus, minus = self._sides()
            return torch.linalg.solve(plus, minus)

    def rotate(self, rows: torch.Tensor) -> torch.Tensor:
        """rows @ Q^T without forming Q: a solve with n right-hand sides instead of D; (n, D) -> (n, D)."""
        with torch.autocast(self.weight.device.type, enabled=False):
            plus, minus = self._sides()
            return torch.linalg.solve(plus, minus @ rows.T).T

    @torch.no_grad()
    def distance_from_identity(self) -> torch.Tensor:
        """||Q - I||_F / sqrt(D): 0 at the start, sqrt(2) for an unrelated rotation; ()."""
        q = self.matrix()
        dim = q.shape[0]
        return torch.linalg.norm(q - torch.eye(dim, dtype=q.dtype, device=q.device)) / dim**0.5

    @torch.no_grad()
    def orthogonality_error(self) -> torch.Tensor:
        """max |Q^T Q - I|; ()."""
        q = self.matrix()
        return (q.T @ q - torch.eye(q.shape[0], dtype=q.dtype, device=q.device)).abs().max()


def cayley(skew: torch.Tensor) -> torch.Tensor:
    """Rotations (I - K)(I + K)^-1 of skew-symmetric matrices (..., b, b), in at least fp32 outside autocast."""
    with torch.autocast(skew.device.type, enabled=False):
        wide = skew if skew.dtype == torch.float64 else skew.float()
        eye = torch.eye(wide.shape[-1], device=wide.device, dtype=wide.dtype)
        return torch.linalg.solve(eye + wide, eye - wide, left=False)
