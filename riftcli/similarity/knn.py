"""Nearest-neighbour classification on frozen features: what a representation knows without any training."""

from __future__ import annotations

import torch


def knn_accuracy(
    bank: torch.Tensor,
    bank_targets: torch.Tensor,
    queries: torch.Tensor | None = None,
    query_targets: torch.Tensor | None = None,
    k: int = 20,
    temperature: float = 0.07,
    chunk: int = 1024,
) -> float:
    """Weighted k-nearest-neighbour accuracy in [0, 1], the DINO protocol (cosine similarity, votes exp(sim / T)).

    bank (N, D), bank_targets (N,), queries (M, D), query_targets (M,). Without queries the bank is scored leave-one-out:
    a sample never votes for itself. k is clamped to the bank's size.
    """
    leave_one_out = queries is None
    bank = torch.nn.functional.normalize(bank.float(), dim=1)
    if queries is None or query_targets is None:
        queries, query_targets = bank, bank_targets
    else:
        queries = torch.nn.functional.normalize(queries.float(), dim=1)
    k = min(k, bank.shape[0] - int(leave_one_out))
    num_classes = int(bank_targets.max()) + 1
    correct = 0
    for start in range(0, queries.shape[0], chunk):
        similarity = queries[start : start + chunk] @ bank.T  # (c, N)
        if leave_one_out:
            rows = torch.arange(similarity.shape[0])
            similarity[rows, rows + start] = -torch.inf
        top, index = similarity.topk(k, dim=1)
        votes = torch.zeros(similarity.shape[0], num_classes)
        votes.scatter_add_(1, bank_targets[index], (top / temperature).exp())
        correct += int((votes.argmax(1) == query_targets[start : start + chunk]).sum())
    return correct / queries.shape[0]
