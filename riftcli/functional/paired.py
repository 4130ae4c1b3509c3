"""Two models' features of the same samples, and what several measures make of them: computed once, when it is first asked for."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple

import torch

from riftcli.functional.cka import Moments, StreamingCka
from riftcli.functional.pair_table import PairTable
from riftcli.functional.rounding import is_constant

CHUNK = 2048  # rows at a time


class Shares(NamedTuple):
    """What each sample has in the moments, (N,) fp64, for centred samples x and y: x^T A x with A = X^T X, x^T A y with
    A = X^T Y, y^T A y with A = Y^T Y, and the squared lengths of x and of y.
    """

    xx: torch.Tensor
    xy: torch.Tensor
    yy: torch.Tensor
    length_x: torch.Tensor
    length_y: torch.Tensor


class Paired:
    """x (N, D) and y (N, E) in fp32 or fp64. All is computed on `device`, a few rows at a time; by default where they are."""

    def __init__(self, x: torch.Tensor, y: torch.Tensor, device: torch.device | None = None) -> None:
        assert len(x) == len(y), "similarities compare the same samples"
        self.x, self.y = x.detach(), y.detach()
        self.device = x.device if device is None else device

    def __len__(self) -> int:
        return len(self.x)

    @cached_property
    def constant(self) -> bool:
        """Do the samples of one side differ by no more than rounding?"""
        return is_constant(self.x.to(self.device)) or is_constant(self.y.to(self.device))

    @cached_property
    def sums(self) -> StreamingCka:
        """Over all samples."""
        stream = StreamingCka()
        for x, y in self._chunks():
            stream.update(x, y)
        return stream

    @cached_property
    def moments(self) -> Moments:
        """X^T X, X^T Y, Y^T Y of centred rows, in fp64; products of a chunk are in the rows' own precision."""
        return self.sums.moments()

    @cached_property
    def exact(self) -> Paired:
        """The same in fp64."""
        return Paired(self.x.double(), self.y.double(), self.device)

    @cached_property
    def shares(self) -> Shares:
        """What each sample has in them."""
        xx, xy, yy = (m.to(self.x.dtype) for m in self.moments)
        wide, parts = torch.cat([xx, xy], 1), []
        for x, y in self.centred():
            turned = x @ wide
            own = [turned[:, : x.shape[1]] * x, turned[:, x.shape[1] :] * y, (y @ yy) * y, x * x, y * y]
            parts.append(torch.stack([product.sum(1, dtype=torch.float64) for product in own]))
        return Shares(*torch.cat(parts, 1))

    @cached_property
    def tables(self) -> tuple[PairTable, PairTable]:
        """All pairs of samples, of x and of y: two tables (N, N)."""
        return PairTable(self.x.to(self.device)), PairTable(self.y.to(self.device))

    def centred(self, dtype: torch.dtype | None = None) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """A few rows of both sides at a time, without the mean of all; in their own precision or in `dtype`."""
        x_mean, y_mean = self._means
        for x, y in self._chunks():
            x, y = (rows.to(dtype or rows.dtype) for rows in (x, y))
            yield x - x_mean.to(x.dtype), y - y_mean.to(y.dtype)

    def centred_at(self, samples: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Chosen rows of both sides, without the mean of all."""
        x, y = self.x[samples].to(self.device), self.y[samples].to(self.device)
        return x - self._means[0].to(x.dtype), y - self._means[1].to(y.dtype)

    @cached_property
    def _means(self) -> tuple[torch.Tensor, torch.Tensor]:
        total_x, total_y = (sum(part.sum(0, dtype=torch.float64) for part in side) for side in zip(*self._chunks(), strict=True))
        return total_x / len(self), total_y / len(self)

    def _chunks(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for x, y in zip(self.x.split(CHUNK), self.y.split(CHUNK), strict=True):
            yield x.to(self.device), y.to(self.device)
