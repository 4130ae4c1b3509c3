"""What a term over the whole batch looks at: features (n, D), or pairs of images and texts; cut, joined and gathered alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch

from riftcli import dist
from riftcli.protocols import Pairs

Rows = TypeVar("Rows", torch.Tensor, Pairs, torch.Tensor | Pairs)


def over_rows(change: Callable[[torch.Tensor], torch.Tensor], rows: Rows) -> Rows:
    """`change` applied to every tensor that has a row per sample; the scale stays."""
    return Pairs(change(rows.images), change(rows.texts), rows.scale) if isinstance(rows, Pairs) else change(rows)


def gathered(rows: Rows) -> Rows:
    """The rows of every rank in rank order, differentiable."""
    return over_rows(dist.gather_rows, rows)


def detached(rows: Rows) -> Rows:
    """The same values outside the graph."""
    if isinstance(rows, Pairs):
        return Pairs(*(tensor.detach() for tensor in rows))
    return rows.detach()


def leaves(rows: Rows) -> Rows:
    """The same values as the start of a graph of their own, the scale too."""
    if isinstance(rows, Pairs):
        return Pairs(*(tensor.detach().clone().requires_grad_() for tensor in rows))
    return rows.detach().clone().requires_grad_()


def joined(parts: Sequence[Any]) -> Any:
    """Micro-batches behind each other."""
    some = list(parts)
    if isinstance(some[0], Pairs):
        return Pairs(torch.cat([p.images for p in some]), torch.cat([p.texts for p in some]), some[0].scale)
    return torch.cat(some)


def divided(rows: Rows, parts: int) -> list[Rows]:
    """Inverse of `joined`."""
    if isinstance(rows, Pairs):
        pairs = zip(rows.images.chunk(parts), rows.texts.chunk(parts), strict=True)
        return [Pairs(images, texts, rows.scale) for images, texts in pairs]
    return list(rows.chunk(parts))


def tensors(rows: torch.Tensor | Pairs) -> list[torch.Tensor]:
    """Those with a row per sample."""
    return [rows.images, rows.texts] if isinstance(rows, Pairs) else [rows]


def gradients(rows: Rows) -> Rows:
    """Of a loss that was computed from `leaves` and run backward; zeros where it does not depend on them."""
    if isinstance(rows, Pairs):
        return Pairs(*(_gradient(tensor) for tensor in rows))
    return _gradient(rows)


def pulled(rows: torch.Tensor | Pairs | None, pull: torch.Tensor | Pairs | None, last: bool) -> torch.Tensor | float:
    """sum(rows * gradient): its gradient is that of the loss. Of the scale once a step, in the last micro-batch."""
    if rows is None or pull is None:
        return 0.0
    total = sum((row * own).sum() for row, own in zip(tensors(rows), tensors(pull), strict=True))
    if isinstance(rows, Pairs) and isinstance(pull, Pairs):
        total = total + rows.scale * pull.scale * last
    return total


def _gradient(leaf: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
