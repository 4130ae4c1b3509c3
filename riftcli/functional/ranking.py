"""Retrieval by cosine similarity: which of a gallery's items share the query's class, and how far in front they stand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F


class Ranking(NamedTuple):
    """Of every query. hits (Q, K): an item of its class among the first places[k]; precision (Q,): average precision over the
    whole ranking; defined (Q,): False for a query without any item of its class, which has no score.
    """

    hits: torch.Tensor
    precision: torch.Tensor
    defined: torch.Tensor

    def means(self, places: Sequence[int]) -> dict[str, float | None]:
        """`cmc_1`, ... and `map` over the queries that have a score."""
        some = self.defined
        if not bool(some.any()):
            return {**{f"cmc_{k}": None for k in places}, "map": None}
        found = {f"cmc_{k}": float(self.hits[some, i].double().mean()) for i, k in enumerate(places)}
        return {**found, "map": float(self.precision[some].double().mean())}


SIMILARITIES = 2**24  # that are held at once


def queries_at_a_time(gallery: int) -> int:
    """How many queries make that many similarities with a gallery of this size."""
    return max(1, SIMILARITIES // max(1, gallery))


def _own(rows: torch.Tensor) -> torch.Tensor:
    return rows


def ranked(
    queries: torch.Tensor,
    gallery: torch.Tensor,
    labels: torch.Tensor,
    gallery_labels: torch.Tensor,
    own: torch.Tensor | None = None,
    places: Sequence[int] = (1,),
    chunk: int | None = None,
    gather: Callable[[torch.Tensor], torch.Tensor] = _own,
    add: Callable[[torch.Tensor], torch.Tensor] = _own,
) -> Ranking:
    """CMC and average precision, exact and a chunk of queries at a time; queries (Q, D), gallery (G, D), labels (Q,), (G,).
    chunk: queries at a time; None takes `queries_at_a_time`.

    own (Q,): position in the gallery of the query itself, which is left out; -1 for none. An item of another class that is as
    near counts as nearer, so that a constant model finds nothing. For a gallery that lies in parts on several processes: gather
    puts (q, P) of every part side by side, add sums over the parts; each process gets the whole result. They meet once a chunk,
    so give all the same one.
    """
    # in single precision two items that are nearly as near change places
    queries, gallery = F.normalize(queries.double(), dim=1), F.normalize(gallery.double(), dim=1)
    hits, precision, defined = [], [], []
    chunk = chunk or queries_at_a_time(len(gallery))
    for start in range(0, len(queries), chunk):
        some = slice(start, start + chunk)
        similarity = queries[some] @ gallery.T  # (q, G)
        same = labels[some, None] == gallery_labels[None]
        usable = torch.ones_like(same)
        if own is not None:
            rows = (own[some] >= 0).nonzero().flatten()
            usable[rows, own[some][rows]] = False
        right = _positives(similarity, same & usable, gather)
        there = right > float("-inf")
        nearer = add(_at_least(similarity.masked_fill_(same | ~usable, float("-inf")), right))
        place = torch.arange(1, right.shape[1] + 1, device=right.device, dtype=torch.float64)
        count = there.sum(1)
        shares = torch.where(there, place / (place + nearer), torch.zeros_like(place))
        precision.append(shares.sum(1) / count.clamp_min(1))
        first = nearer[:, :1] if right.shape[1] else nearer.new_zeros(len(right), 1)
        hits.append(torch.cat([(first < k) & (count > 0)[:, None] for k in places], 1))
        defined.append(count > 0)
    return Ranking(torch.cat(hits), torch.cat(precision), torch.cat(defined))


def _at_least(others: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """How many of each row of others (q, G) are as large as each of right (q, P), or larger; (q, P)."""
    # numpy sorts with vector instructions, several times as fast as torch on a CPU
    own = torch.from_numpy(np.sort(others.numpy(), axis=1)) if others.device.type == "cpu" else others.sort(1).values
    return own.shape[1] - torch.searchsorted(own, right.contiguous())


def _positives(similarity: torch.Tensor, same: torch.Tensor, gather: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """Similarities of each query to the items of its class, nearest first, -inf behind the last; (q, most of them)."""
    width = int(same.sum(1).max()) if len(same) else 0
    found = similarity.masked_fill(~same, float("-inf")).topk(min(width, similarity.shape[1]), 1).values
    everywhere = gather(found)
    return everywhere.sort(1, descending=True).values
