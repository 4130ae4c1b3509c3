"""Nearest-neighbour classification on frozen features: what a representation knows without any training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from riftcli.functional.largest import largest
from riftcli.functional.neighbours import all_equally_near

TABLE = 2**28  # similarities that are held at once: 1 GiB, which a bank of a million samples would pass at the usual chunk
Vote = Literal["softmax", "majority"]


@dataclass(frozen=True)
class Neighbours:
    """The nearest bank samples of every query, nearest first."""

    similarity: torch.Tensor  # (M, k) cosine
    index: torch.Tensor  # (M, k) rows of the bank

    def or_nearer(self, others: Neighbours) -> Neighbours:
        """The k nearest of both, for the same queries; of equally near ones these, before the others."""
        similarity = torch.cat([self.similarity, others.similarity], 1)
        order = similarity.sort(dim=1, descending=True, stable=True).indices[:, : self.similarity.shape[1]]
        return Neighbours(similarity.gather(1, order), torch.cat([self.index, others.index], 1).gather(1, order))


def nearest(
    bank: torch.Tensor, queries: torch.Tensor, k: int, chunk: int = 512, own: torch.Tensor | None = None, first: int = 0
) -> Neighbours:
    """The k nearest rows of the bank by cosine; bank (N, D), queries (M, D). Chunked: the (M, N) similarities are never held.

    own (M,): the row of the bank that is the query itself, which is no neighbour; one that is not in it for none. first: the
    number of the bank's first row, where it is a part of a larger one. Where there are fewer than k, -inf fills up the others.
    """
    bank = torch.nn.functional.normalize(bank.float(), dim=1)
    chunk = max(1, min(chunk, TABLE // max(1, len(bank))))
    similarity, index = [bank.new_empty(0, k)], [bank.new_empty(0, k, dtype=torch.long)]
    for start in range(0, len(queries), chunk):
        table = torch.nn.functional.normalize(queries[start : start + chunk].to(bank).float(), dim=1) @ bank.T  # (c, N)
        if own is not None:
            place = own[start : start + chunk].to(bank.device) - first
            rows = ((place >= 0) & (place < len(bank))).nonzero().flatten()
            table[rows, place[rows]] = -torch.inf
        values, columns = largest(table, min(k, len(bank)))
        missing = (0, k - values.shape[1])
        similarity.append(torch.nn.functional.pad(values, missing, value=-torch.inf))
        index.append(torch.nn.functional.pad(columns + first, missing))
    return Neighbours(torch.cat(similarity), torch.cat(index))


def votes(found: Neighbours, bank_targets: torch.Tensor, classes: int, k: int, temperature: float, vote: Vote) -> torch.Tensor:
    """Score of every class from the first k neighbours; (M, C).

    softmax: the DINO protocol, every neighbour votes exp(similarity / temperature). majority: one vote each, and of classes
    with equally many the one that holds the nearest neighbour wins.
    """
    k = min(k, found.index.shape[1])
    labels = bank_targets[found.index[:, :k]]  # (M, k)
    scores = torch.zeros(labels.shape[0], classes)
    if vote == "softmax":
        # relative to the nearest: the same shares, and no overflow at low temperatures
        gaps = found.similarity[:, :k] - found.similarity[:, :1]
        return scores.scatter_add_(1, labels, (gaps / temperature).exp())
    scores.scatter_add_(1, labels, torch.ones(labels.shape))
    places = torch.arange(k, dtype=scores.dtype).expand(labels.shape)
    nearest_place = torch.full_like(scores, k).scatter_reduce_(1, labels, places, "amin")
    return scores - nearest_place / (2 * k)


def undecided(bank: torch.Tensor, bank_targets: torch.Tensor) -> str | None:
    """Why neighbours in this bank say nothing of its features, if they do not; (N, D), (N,)."""
    if len(bank_targets.unique()) < 2:
        return "the bank has a single class"
    return "the features are constant: all of the bank is equally near" if all_equally_near(bank) else None


def knn_predict(
    bank: torch.Tensor,
    bank_targets: torch.Tensor,
    queries: torch.Tensor | None = None,
    k: int = 20,
    temperature: float = 0.07,
    vote: Vote = "softmax",
    chunk: int = 512,
) -> torch.Tensor:
    """Predicted classes; bank (N, D), bank_targets (N,), queries (M, D) -> (M,). Without queries, leave-one-out."""
    if queries is None:
        found = nearest(bank, bank, min(k, len(bank) - 1), chunk, torch.arange(len(bank)))
    else:
        found = nearest(bank, queries, min(k, len(bank)), chunk)
    return votes(found, bank_targets, int(bank_targets.max()) + 1, k, temperature, vote).argmax(1)


def knn_accuracy(
    bank: torch.Tensor,
    bank_targets: torch.Tensor,
    queries: torch.Tensor | None = None,
    query_targets: torch.Tensor | None = None,
    k: int = 20,
    temperature: float = 0.07,
    vote: Vote = "softmax",
    chunk: int = 512,
) -> float | None:
    """k-nearest-neighbour accuracy in [0, 1]; targets (N,) and (M,). Without queries the bank is scored leave-one-out. None
    where all of the bank is equally near.
    """
    truth = bank_targets if queries is None else query_targets
    assert truth is not None, "queries come with their targets"
    if all_equally_near(bank):
        return None
    return float((knn_predict(bank, bank_targets, queries, k, temperature, vote, chunk) == truth).double().mean())
