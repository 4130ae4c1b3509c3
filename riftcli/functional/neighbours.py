"""Do two models agree on who is near whom? (mutual k-nearest neighbours, Huh et al. 2024)"""

from __future__ import annotations

import torch

from riftcli.functional.largest import largest
from riftcli.functional.pair_table import PairTable
from riftcli.functional.paired import Paired
from riftcli.functional.rounding import is_constant
from riftcli.functional.rsa import is_flat
from riftcli.functional.thinning import thinned


def neighbours(features: torch.Tensor, k: int, chunk: int = 1024) -> torch.Tensor:
    """The k nearest other samples by cosine similarity, nearest first; (N, D) -> (N, k)."""
    rows = torch.nn.functional.normalize(features.detach().double(), dim=1)
    found = []
    for start in range(0, len(rows), chunk):
        similarity = rows[start : start + chunk] @ rows.T  # (c, N)
        own = torch.arange(similarity.shape[0])
        similarity[own, own + start] = -torch.inf
        found.append(largest(similarity, k)[1])
    return torch.cat(found)


def all_equally_near(features: torch.Tensor) -> bool:
    """Are the cosines of all pairs the same up to rounding, so that nobody has neighbours? Looks at 500 samples; (N, D)."""
    some = features[thinned(len(features), 500)]
    return is_constant(features) or is_flat(PairTable(some), some)


WIDER = 5  # times as many neighbours of all samples as of a half: with 10 of 50, one half in 400,000 has too few of them


def mutual_knn(x: torch.Tensor, y: torch.Tensor, k: int = 10) -> float | None:
    """Mean share of the k nearest neighbours that both models name; (N, D), (N, E). k / (N - 1) for unrelated features.

    k is clamped to N - 1; None below three samples, and where all are equally near. No table of all pairs is held.
    """
    assert len(x) == len(y), "neighbours are compared for the same samples"
    if _undefined(x, y):
        return None
    k = min(k, len(x) - 1)
    return _share(neighbours(x, k), neighbours(y, k))


def mutual_knn_of(pair: Paired, k: int = 10) -> float | None:
    """The same, from tables of all pairs, which other measures look at too."""
    if _undefined(pair.x, pair.y):
        return None
    k = min(k, len(pair) - 1)
    ours, theirs = (table.nearest(_wide(len(pair), k))[:, :k] for table in pair.tables)
    return _share(ours, theirs)


def mutual_knn_error(pair: Paired, k: int = 10, draws: int = 30, seed: int = 0) -> float | None:
    """Standard error of mutual_knn: the standard deviation of its values on random halves of the samples (for halves, the
    delete-d jackknife needs no factor; Shao and Wu 1989). Neighbours in a half are the nearest of all that are in it.
    """
    count = len(pair)
    if _wide(count, k) == k:
        return None
    wide = [table.nearest(_wide(count, k)) for table in pair.tables]
    generator, values = torch.Generator().manual_seed(seed), []
    for _ in range(draws):
        inside = torch.zeros(count, dtype=torch.bool)
        inside[torch.randperm(count, generator=generator)[: count // 2]] = True
        inside = inside.to(pair.device)
        own = []
        for table in wide:
            names = table[inside]
            there = inside[names]
            place = torch.where(there & (there.cumsum(1) <= k), names, -1)
            own.append(place.sort(1, descending=True).values[:, :k])
        shared = (own[0][:, :, None] == own[1][:, None, :]) & (own[0][:, :, None] >= 0)
        values.append(float(shared.any(2).double().mean()))
    return float(torch.tensor(values, dtype=torch.float64).std())


def _wide(count: int, k: int) -> int:
    """How many neighbours are looked up: enough for halves of many samples."""
    return WIDER * k if count >= 4 * WIDER * k else k


def _undefined(x: torch.Tensor, y: torch.Tensor) -> bool:
    return len(x) < 3 or all_equally_near(x) or all_equally_near(y)


def _share(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """The mean share of the names in (N, k) that the other row has too."""
    shared = [(a[:, :, None] == b[:, None, :]).any(2) for a, b in zip(ours.split(1024), theirs.split(1024), strict=True)]
    return float(torch.cat(shared).double().mean())
