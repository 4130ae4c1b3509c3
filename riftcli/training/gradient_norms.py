"""How hard the task and the regularizer pull at the features."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from riftcli import dist


def gradients_of(loss: torch.Tensor, rows: list[torch.Tensor]) -> list[torch.Tensor]:
    """d loss / d rows, leaving the graph for the backward pass that follows."""
    found = torch.autograd.grad(loss, rows, retain_graph=True, allow_unused=True)
    return [torch.zeros_like(row) if own is None else own.detach().float() for row, own in zip(rows, found, strict=True)]


def global_norms(both: list[tuple[list[torch.Tensor], list[torch.Tensor]]]) -> tuple[float, float] | None:
    """Norms over the global batch of the task's gradients and of the penalty's; both: of each micro-batch."""
    if not both:
        return None
    squares = torch.stack([torch.stack([_squares(task), _squares(term)]) for task, term in both]).sum(0)
    # every rank's gradients are world_size times too large, until DDP takes the mean
    task, term = (dist.sum_over_ranks(squares).sqrt() / dist.world_size()).tolist()
    return task, term


def _squares(gradients: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.stack([one.square().sum() for one in gradients]).sum()
