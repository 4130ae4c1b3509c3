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
MANY = 10_000  # samples whose table is not copied at once


class Shares(NamedTuple):
    """What each sample has in the moments of sides of norm 1, (N,) fp64: x^T A x with A = X^T X, x^T A y with A = X^T Y, y^T A y
    with A = Y^T Y, and the squared lengths of x and of y, which sum to 1.
    """

    xx: torch.Tensor
    xy: torch.Tensor
    yy: torch.Tensor
    length_x: torch.Tensor
    length_y: torch.Tensor


class Paired:
    """x (N, D) and y (N, E), in fp32, or fp64 where one of them is.

    All is computed on `device`, by default where they are, and of many samples a few rows at a time.
    """

    def __init__(self, x: torch.Tensor, y: torch.Tensor, device: torch.device | None = None) -> None:
        assert len(x) == len(y), "similarities compare the same samples"
        kind = torch.promote_types(torch.promote_types(x.dtype, y.dtype), torch.float32)
        self.x, self.y = x.detach().to(kind), y.detach().to(kind)
        self.device = x.device if device is None else device

    def __len__(self) -> int:
        return len(self.x)

    @cached_property
    def constant(self) -> bool:
        """Do the samples of one side differ by no more than rounding?"""
        if len(self) > MANY:
            return self.sums.is_constant()
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
    def unit_moments(self) -> Moments:
        """Those of sides that are scaled to norm 1: sums of fourth powers stay within range."""
        xx, xy, yy = self.moments
        return xx / xx.trace(), xy / (xx.trace() * yy.trace()).sqrt(), yy / yy.trace()

    @cached_property
    def exact(self) -> Paired:
        """The same in fp64."""
        return Paired(self.x.double(), self.y.double(), self.device)

    @cached_property
    def shares(self) -> Shares:
        """What each sample has in them."""
        norm_x, norm_y = (float(self.moments[i].trace()) ** 0.5 for i in (0, 2))
        xx, xy, yy = (m.to(self.x.dtype) for m in self.unit_moments)
        wide, parts = torch.cat([xx, xy], 1), []
        for x, y in self.centred():
            x, y = x / norm_x, y / norm_y
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
        totals = [torch.zeros(side.shape[1], dtype=torch.float64, device=self.device) for side in (self.x, self.y)]
        for parts in self._chunks():
            for total, part in zip(totals, parts, strict=True):
                total += part.sum(0, dtype=torch.float64)
        return totals[0] / len(self), totals[1] / len(self)

    def _chunks(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for x, y in zip(self.x.split(CHUNK), self.y.split(CHUNK), strict=True):
            yield x.to(self.device), y.to(self.device)
