"""All pairs of a table's rows: their cosines and distances, a few rows of the table of pairs at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch

from riftcli.functional.largest import largest

Distance = Literal["cosine", "euclid"]
BLOCK = 512  # rows of products at a time, of which those before them are known already
ROWS = 64  # rows of pairs at a time: what is made of them on the way stays in a CPU's cache


class PairTable:
    """All pairs of the rows of a table (N, D), in fp64.

    cosines: (N, N), of the rows as they are; 0 for a row of zeros. lengths: of the rows, (N,).
    """

    def __init__(self, rows: torch.Tensor) -> None:
        rows = rows.detach().double()
        self.lengths = torch.linalg.norm(rows, dim=1)
        self.cosines = symmetric_product(rows / self.lengths.clamp_min(torch.finfo(rows.dtype).tiny)[:, None])
        self._means: dict[str, torch.Tensor] = {}
        self._spreads: dict[str, float] = {}
        self._nearest: dict[int, torch.Tensor] = {}

    def __len__(self) -> int:
        return len(self.cosines)

    def blocks(self) -> Iterator[slice]:
        """Rows at a time."""
        for start in range(0, len(self), ROWS):
            yield slice(start, min(start + ROWS, len(self)))

    def squares(self, rows: slice) -> torch.Tensor:
        """Squared distances of some rows to all; (n, N), 0 of a row to itself."""
        own = self.lengths[rows, None]
        found = (self.cosines[rows] * (-2 * own)).mul_(self.lengths).add_(self.lengths.square()).add_(own.square()).clamp_min_(0)
        return on_diagonal(found, rows, 0)

    def distances(self, rows: slice, kind: Distance | Literal["chord"] = "cosine") -> torch.Tensor:
        """Of some rows to all, (n, N); cosine: 1 - cos; euclid: the L2 distance; chord: that of the rows at length 1. 0 of a row
        to itself.
        """
        if kind == "euclid":
            return self.squares(rows).sqrt_()
        found = on_diagonal(1 - self.cosines[rows], rows, 0)
        return found if kind == "cosine" else found.mul_(2).clamp_min_(0).sqrt_()

    def nearest(self, k: int) -> torch.Tensor:
        """The k most similar other rows by cosine, the most similar first; (N, k)."""
        if k not in self._nearest:
            blocks = (on_diagonal(self.cosines[rows].clone(), rows, -torch.inf) for rows in self.blocks())
            self._nearest[k] = torch.cat([largest(block, k)[1] for block in blocks])
        return self._nearest[k]

    def mean(self, kind: Distance | Literal["chord"]) -> torch.Tensor:
        """Of the distances of all pairs, ()."""
        if kind not in self._means:
            total = torch.stack([self.distances(rows, kind).sum() for rows in self.blocks()]).sum()
            self._means[kind] = total / (len(self) * (len(self) - 1))
        return self._means[kind]

    def spread(self, kind: Distance | Literal["chord"]) -> float:
        """Standard deviation of the distances of all pairs."""
        if kind not in self._spreads:
            mean = self.mean(kind)
            parts = [on_diagonal(self.distances(rows, kind).sub_(mean), rows, 0).square_().sum() for rows in self.blocks()]
            pairs = len(self) * (len(self) - 1) / 2
            self._spreads[kind] = float((torch.stack(parts).sum() / 2 / (pairs - 1)).sqrt())
        return self._spreads[kind]


def symmetric_product(rows: torch.Tensor) -> torch.Tensor:
    """R R^T; (N, D) -> (N, N). What lies below the diagonal is copied from above it."""
    found = rows.new_empty(len(rows), len(rows))
    for start in range(0, len(rows), BLOCK):
        end = start + BLOCK
        found[start:end, start:] = rows[start:end] @ rows[start:].T
        found[end:, start:end] = found[start:end, end:].T
    return found


def on_diagonal(block: torch.Tensor, rows: slice, value: float) -> torch.Tensor:
    """The same rows of a table, with a value where each of them meets itself."""
    block[:, rows].fill_diagonal_(value)
    return block


def above_diagonal(parts: Iterator[torch.Tensor], n: int) -> torch.Tensor:
    """What lies above the diagonal of a table (n, n) that comes a few rows at a time, in one row; (n (n - 1) / 2,)."""
    found, start = [], 0
    for part in parts:
        found += [row[start + i + 1 :] for i, row in enumerate(part)]
        start += len(part)
    assert start == n
    return torch.cat(found)


def at_places(values: torch.Tensor, places: list[int]) -> list[float]:
    """The values (P,) that stand at these places in ascending order; those of a CPU are put into another order."""
    if values.device.type == "cpu":  # numpy partitions with vector instructions
        plain = values.numpy()
        plain.partition(places)
        return plain[places].tolist()
    return values.sort().values[torch.tensor(places)].tolist()
