"""Softmax values of tables with tens of thousands of classes, a part of the rows at a time in double precision."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

CELLS = 2**22


def parts(logits: torch.Tensor) -> Iterator[torch.Tensor]:
    """Some rows after the other in fp64; (N, C) -> (n, C)."""
    for some in logits.split(max(1, CELLS // logits.shape[1])):
        yield some.double()


def log_sum(logits: torch.Tensor) -> torch.Tensor:
    """log sum exp of every row in fp64; (N, C) -> (N,)."""
    import torch

    return torch.cat([some.logsumexp(1) for some in parts(logits)])


def likeliest(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The largest probability of every row in fp64, and its class; (N, C) -> (N,), (N,)."""
    import torch

    found = [some.softmax(1).max(1) for some in parts(logits)]
    return torch.cat([one.values for one in found]), torch.cat([one.indices for one in found])
