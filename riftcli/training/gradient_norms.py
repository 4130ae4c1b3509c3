"""How hard the task and the regularizer pull at the features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from riftcli import dist


@dataclass
class GradientNorms:
    """Of a step: each entry is the squared norm () of one micro-batch's gradients with respect to its rows."""

    task: list[torch.Tensor] = field(default_factory=list)
    penalty: list[torch.Tensor] = field(default_factory=list)

    def add(self, term: str, gradients: Sequence[torch.Tensor]) -> None:
        """term: task or penalty."""
        getattr(self, term).append(torch.stack([one.square().sum() for one in gradients]).sum())

    def over_ranks(self) -> tuple[float, float] | None:
        """Norms over the global batch of the task's gradients and of the penalty's; None where none were taken."""
        if not self.task or not self.penalty:
            return None
        squares = torch.stack([torch.stack(self.task).sum(), torch.stack(self.penalty).sum()])
        # every rank's gradients are world_size times too large, until DDP takes the mean
        task, penalty = (dist.sum_over_ranks(squares).sqrt() / dist.world_size()).tolist()
        return task, penalty


def gradients_of(loss: torch.Tensor, rows: list[torch.Tensor]) -> list[torch.Tensor]:
    """d loss / d rows, leaving the graph for the backward pass that follows."""
    found = torch.autograd.grad(loss, rows, retain_graph=True, allow_unused=True)
    return [torch.zeros_like(row) if own is None else own.detach().float() for row, own in zip(rows, found, strict=True)]
