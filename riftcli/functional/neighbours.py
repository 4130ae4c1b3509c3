"""Do two models agree on who is near whom? (mutual k-nearest neighbours, Huh et al. 2024)"""

from __future__ import annotations

import torch


def neighbours(features: torch.Tensor, k: int, chunk: int = 1024) -> torch.Tensor:
    """The k nearest other samples by cosine similarity, nearest first; (N, D) -> (N, k)."""
    rows = torch.nn.functional.normalize(features.detach().float(), dim=1)
    found = []
    for start in range(0, len(rows), chunk):
        similarity = rows[start : start + chunk] @ rows.T  # (c, N)
        own = torch.arange(similarity.shape[0])
        similarity[own, own + start] = -torch.inf
        found.append(similarity.topk(k, dim=1).indices)
    return torch.cat(found)


def mutual_knn(x: torch.Tensor, y: torch.Tensor, k: int = 10) -> float | None:
    """Mean share of the k nearest neighbours that both models name; (N, D), (N, E). k / (N - 1) for unrelated features.

    k is clamped to N - 1; None below three samples.
    """
    assert len(x) == len(y), "neighbours are compared for the same samples"
    count = len(x)
    if count < 3:
        return None
    k = min(k, count - 1)
    ours, theirs = neighbours(x, k), neighbours(y, k)
    shared = [(a[:, :, None] == b[:, None, :]).any(2) for a, b in zip(ours.split(1024), theirs.split(1024), strict=True)]
    return float(torch.cat(shared).double().mean())
