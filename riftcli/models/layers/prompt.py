"""Prompt tokens of a block, inserted before it and taken out behind it by hooks."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class Carried(nn.Module):
    """Where a block leaves its prompts for the next one; shared by all blocks, so that between blocks nobody sees them."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens: torch.Tensor | None = None


class Prompt(nn.Module):
    """The prompts of one block: its own, or those that the block before has left."""

    def __init__(
        self, count: int, dim: int, prefix: int, bound: float, dropout: float, carried: Carried, device: torch.device
    ) -> None:
        super().__init__()
        self.prefix, self.carried, self.dropout, self.hands_on = prefix, carried, nn.Dropout(dropout), False
        self.tokens = nn.Parameter(torch.empty(count, dim, device=device).uniform_(-bound, bound)) if count else None

    def attach(self, block: Any) -> None:
        """Insert before a block and remove behind it, so that pooling and whoever looks between blocks sees no prompts."""
        block.prompt = self
        block.register_forward_pre_hook(_insert)
        block.register_forward_hook(_remove)

    def forward(self, batch: int) -> torch.Tensor:
        """(batch, p, D)."""
        if self.tokens is not None:
            return self.dropout(self.tokens.expand(batch, -1, -1))
        assert self.carried.tokens is not None
        return self.carried.tokens


def _insert(block: Any, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    x, prompt = inputs[0], block.prompt
    tokens = prompt(x.shape[0])
    prompt.count = tokens.shape[1]
    return (torch.cat([x[:, : prompt.prefix], tokens.to(x.dtype), x[:, prompt.prefix :]], 1), *inputs[1:])


def _remove(block: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
    prompt = block.prompt
    end = prompt.prefix + prompt.count
    # held only where the next block asks for it: a tensor that stays keeps its whole graph, and cannot be copied
    prompt.carried.tokens = output[:, prompt.prefix : end] if prompt.hands_on else None
    return torch.cat([output[:, : prompt.prefix], output[:, end:]], 1)
