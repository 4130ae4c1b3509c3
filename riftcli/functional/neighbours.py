"""Do two models agree on who is near whom? (mutual k-nearest neighbours, Huh et al. 2024)"""

from __future__ import annotations

import torch

from riftcli.functional.largest import largest
from riftcli.functional.rounding import is_constant
from riftcli.functional.rsa import is_flat, rdm
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
    return is_constant(features) or is_flat(rdm(some), some)


WIDER = 5  # times as many neighbours of all samples as of a half: with 10 of 50, one half in 400,000 has too few of them


def mutual_knn_error(x: torch.Tensor, y: torch.Tensor, k: int = 10, draws: int = 30, seed: int = 0) -> float | None:
    """Standard error of mutual_knn: the standard deviation of its values on random halves of the samples (for halves, the
    delete-d jackknife needs no factor; Shao and Wu 1989). Neighbours in a half are the nearest of all that are in it.
    """
    count = len(x)
    if count < 4 * WIDER * k:
        return None
    wide = [neighbours(rows, WIDER * k) for rows in (x, y)]
    generator, values = torch.Generator().manual_seed(seed), []
    for _ in range(draws):
        inside = torch.zeros(count, dtype=torch.bool)
        inside[torch.randperm(count, generator=generator)[: count // 2]] = True
        own = []
        for table in wide:
            names = table[inside]
            there = inside[names]
            place = torch.where(there & (there.cumsum(1) <= k), names, -1)
            own.append(place.sort(1, descending=True).values[:, :k])
        shared = (own[0][:, :, None] == own[1][:, None, :]) & (own[0][:, :, None] >= 0)
        values.append(float(shared.any(2).double().mean()))
    return float(torch.tensor(values, dtype=torch.float64).std())


def mutual_knn(x: torch.Tensor, y: torch.Tensor, k: int = 10) -> float | None:
    """Mean share of the k nearest neighbours that both models name; (N, D), (N, E). k / (N - 1) for unrelated features.

    k is clamped to N - 1; None below three samples, and where all are equally near.
    """
    assert len(x) == len(y), "neighbours are compared for the same samples"
    count = len(x)
    if count < 3 or all_equally_near(x) or all_equally_near(y):
        return None
    k = min(k, count - 1)
    ours, theirs = neighbours(x, k), neighbours(y, k)
    shared = [(a[:, :, None] == b[:, None, :]).any(2) for a, b in zip(ours.split(1024), theirs.split(1024), strict=True)]
    return float(torch.cat(shared).double().mean())
