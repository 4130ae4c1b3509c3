"""A global batch cut into micro-batches, before and after the network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from riftcli.protocols import Pairs


@dataclass(frozen=True)
class MicroBatch:
    """A part of one stream's batch, with its texts where they are read. targets: for the objective; None in another stream.

    watched: the penalty looks at it.
    """

    inputs: torch.Tensor
    targets: torch.Tensor | None
    tokens: torch.Tensor | None
    watched: bool


@dataclass(frozen=True)
class Seen:
    """A micro-batch through the network, and what looks at it."""

    features: torch.Tensor  # (n, D) as the network gave them
    logits: torch.Tensor  # (n, C)
    pairs: Pairs | None  # for an objective of pairs
    compared: torch.Tensor | Pairs | None  # (n, D) or (n, L * D) fp32: for the penalty

    @property
    def task_rows(self) -> list[torch.Tensor]:
        """What the task's loss is a function of."""
        return [self.features] if self.pairs is None else [self.features, self.pairs.texts]


def cut(
    parts: int,
    inputs: torch.Tensor,
    targets: torch.Tensor | None,
    tokens: torch.Tensor | None,
    watched: bool,
    one_each: bool = True,
) -> list[MicroBatch]:
    """So many equal parts of a stream's batch. one_each: a text for each input; else all texts come along with every part."""
    nothing = [None] * parts
    labels: Sequence[torch.Tensor | None] = nothing if targets is None else targets.chunk(parts)
    lines: Sequence[torch.Tensor | None] = [tokens] * parts
    if tokens is not None and one_each:
        lines = tokens.chunk(parts)
    return [MicroBatch(*part, watched) for part in zip(inputs.chunk(parts), labels, lines, strict=True)]
