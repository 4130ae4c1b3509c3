"""Contrastive losses of images and their texts, over the whole batch. Rows are of unit length; fp32 or better."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F

SameClass = Literal["negative", "ignore", "positive"]


def contrastive_loss(
    images: torch.Tensor,
    texts: torch.Tensor,
    scale: torch.Tensor,
    targets: torch.Tensor | None = None,
    same_class: SameClass = "negative",
) -> torch.Tensor:
    """Symmetric cross-entropy of the pairs that belong together (DiVE paper Eq. 1); (n, E), (n, E), () -> ().

    scale: exp(logit_scale), 1 / tau of the paper. targets (n,): classes, which only `same_class` looks at: other pairs of one
    class count against a pair (negative, as FLYP), are left out of its softmax (ignore), or share the target with it (positive).
    """
    logits = scale * images @ texts.T
    if targets is None or same_class == "negative":
        wanted = torch.arange(len(logits), device=logits.device)
        return (F.cross_entropy(logits, wanted) + F.cross_entropy(logits.T, wanted)) / 2
    same = targets[:, None] == targets[None, :]
    if same_class == "ignore":
        others = same & ~torch.eye(len(same), dtype=torch.bool, device=same.device)
        logits = logits.masked_fill(others, float("-inf"))
        return contrastive_loss_from(logits, torch.eye(len(same), device=same.device, dtype=logits.dtype))
    shares = same.to(logits.dtype)
    return contrastive_loss_from(logits, shares / shares.sum(1, keepdim=True))


def contrastive_loss_from(logits: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
    """The mean of both directions of a cross-entropy with a symmetric table of targets (n, n), rows summing to 1."""
    total = logits.new_zeros(())
    for table in (logits, logits.T):
        logs = table.log_softmax(1)
        total = total - torch.where(shares > 0, shares * logs, torch.zeros_like(logs)).sum(1).mean()
    return total / 2


def row_distillation(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Mean over rows of KL(softmax(teacher) || softmax(student)), both directions of the table averaged; (n, n) logits -> ()."""
    total = student.new_zeros(())
    for own, wanted in ((student, teacher), (student.T, teacher.T)):
        total = total + F.kl_div(own.log_softmax(1), wanted.log_softmax(1), reduction="batchmean", log_target=True)
    return total / 2
