"""A bottleneck beside the MLP of a block, hung on it from outside."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn


class Bottleneck(nn.Module):
    """scale * up(dropout(relu(down(x)))); zero at step 0, because up starts at zero."""

    def __init__(self, dim: int, width: int, scale: float, dropout: float, **like: Any) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(dim, width, **like), nn.Linear(width, dim, **like)
        self.dropout, self.scale = nn.Dropout(dropout), scale
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        for value in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(value)

    @classmethod
    def attach(cls, block: Any, width: int, scale: float, dropout: float) -> None:
        """Put one beside a block's MLP.

        Hooks rather than a new block: the names of timm's parameters stay. The branch starts before norm2, so a wrapped mlp
        would see the wrong input; and it ends outside layer scale and drop path.
        """
        like: Any = {"device": block.norm2.weight.device, "dtype": block.norm2.weight.dtype}
        block.adapter = cls(block.norm2.weight.shape[0], width, scale, dropout, **like)
        block.norm2.register_forward_pre_hook(_keep_input)
        block.register_forward_hook(_add_branch)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(n, tokens, D) -> the same."""
        return self.scale * self.up(self.dropout(torch.relu(self.down(x))))


def _keep_input(norm: Any, inputs: tuple[torch.Tensor, ...]) -> None:
    norm.branch_input = inputs[0]


def _add_branch(block: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
    x = block.norm2.branch_input
    del block.norm2.branch_input  # nothing is held beyond the forward pass
    return output + block.adapter(x)
