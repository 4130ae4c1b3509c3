"""What maps from one model's features to another's are made of: common widths, interpolation, the contrast of classes."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def truncated(rows: torch.Tensor, width: int) -> torch.Tensor:
    """(n, D) cut to its first `width` dimensions (lambda-orthogonality compares spaces of different width so)."""
    return rows[:, :width]


def padded(rows: torch.Tensor, width: int) -> torch.Tensor:
    """(n, D) with zeros behind, up to `width`."""
    return F.pad(rows, (0, width - rows.shape[1]))


def slerp(start: torch.Tensor, end: torch.Tensor, share: float) -> torch.Tensor:
    """Between unit vectors along the great circle; (n, D), (n, D) -> (n, D), `share` 0 is start and 1 is end."""
    start, end = F.normalize(start, dim=1), F.normalize(end, dim=1)
    angle = (start * end).sum(1, keepdim=True).clamp(-1, 1).acos()
    sine = angle.sin()
    near = sine < 1e-6  # the same vector, or opposite ones, between which no circle is the great one
    safe = torch.where(near, torch.ones_like(sine), sine)
    curved = (((1 - share) * angle).sin() * start + (share * angle).sin() * end) / safe
    return torch.where(near, (1 - share) * start + share * end, curved)


def class_contrast(
    rows: torch.Tensor, others: torch.Tensor, labels: torch.Tensor | None, temperature: float = 0.07
) -> torch.Tensor:
    """Cross-entropy of each row's similarities to all others, its candidates being those of its class (StableRep's multi-positive
    loss; lambda-orthogonality Eq. 8); (n, D), (n, D) -> (). Without labels each row's only candidate is its own counterpart.
    """
    logits = F.normalize(rows, dim=1) @ F.normalize(others, dim=1).T / temperature
    if labels is None:
        return F.cross_entropy(logits, torch.arange(len(logits), device=logits.device))
    same = (labels[:, None] == labels[None]).to(logits.dtype)
    return F.cross_entropy(logits, same / same.sum(1, keepdim=True))


def cosine(rows: torch.Tensor, others: torch.Tensor) -> float:
    """Mean cosine of rows that belong together; (n, D), (n, D)."""
    return float(F.cosine_similarity(rows.double(), others.double(), dim=1).mean())
