"""A global batch cut into micro-batches, before and after the network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from riftcli.protocols import Pairs


@dataclass(frozen=True)
class MicroBatch:
    """Inputs of the task, and of the other stream where there is one, with their texts."""

    inputs: torch.Tensor
    targets: torch.Tensor
    beside: torch.Tensor | None
    tokens: torch.Tensor | None
    tokens_beside: torch.Tensor | None


@dataclass(frozen=True)
class Seen:
    """A micro-batch through the network."""

    features: torch.Tensor  # (n, D) of both streams, as the network gave them
    logits: torch.Tensor  # (n_task, C)
    compared: torch.Tensor | Pairs  # (n, D) or (n, L * D) fp32: what the penalty looks at
    pairs: Pairs | None  # of the task, for an objective of pairs

    @property
    def task_rows(self) -> list[torch.Tensor]:
        """What the task's loss is a function of."""
        return [self.features] if self.pairs is None else [self.features, self.pairs.texts]


def micro_batches(
    parts: int,
    inputs: torch.Tensor,
    targets: torch.Tensor,
    beside: torch.Tensor | None,
    texts: Mapping[str, torch.Tensor],
    texts_beside: torch.Tensor | None,
) -> list[MicroBatch]:
    """So many equal parts of a batch; texts of classes come along with every one."""
    nothing: list[Any] = [None] * parts
    lines = texts["task"].chunk(parts) if "task" in texts else [texts.get("classes")] * parts
    others = nothing if beside is None else beside.chunk(parts)
    behind = nothing if texts_beside is None else texts_beside.chunk(parts)
    return [MicroBatch(*one) for one in zip(inputs.chunk(parts), targets.chunk(parts), others, lines, behind, strict=True)]
