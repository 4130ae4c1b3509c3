"""Which samples a step sees: a pure function of (seed, epoch, step), whatever the number of ranks and workers."""

from __future__ import annotations

import hashlib

import torch

from riftcli.errors import DataError, UsageError


def sample_seed(seed: int, epoch: int, sample_id: str) -> int:
    """A sample's own random seed: the same with any number of workers, ranks and resumptions."""
    digest = hashlib.blake2b(f"{seed}/{epoch}/{sample_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1  # 63 bits: what torch's generators take


def steps_per_epoch(samples: int, batch_size: int, section: str = "train") -> int:
    """Whole global batches in an epoch (the rest is dropped: batch statistics need full ones); raise DataError for none."""
    steps = samples // batch_size
    if steps == 0:
        raise DataError(
            f"{samples} {'training' if section == 'train' else section} samples do not fill one batch of {section}.batch_size "
            f"{batch_size}; use --set {section}.batch_size={max(2, samples)} or less"
        )
    return steps


def check_reference_batch(batch_size: int, ranks: int, accumulation: int) -> None:
    """Raise UsageError where the second stream's batch does not divide as the task's does."""
    parts = ranks * accumulation
    if batch_size % parts:
        near = batch_size - batch_size % parts or parts
        raise UsageError(
            f"reference.batch_size {batch_size} is global and does not divide over {ranks} ranks x {accumulation} micro-batches; "
            f"use --set reference.batch_size={near}"
        )


def divide_batch(batch_size: int, ranks: int, micro_batch_size: int | None) -> tuple[int, int]:
    """(samples per rank and forward, forwards per step); raise UsageError when it does not come out even."""
    if batch_size % ranks:
        near = batch_size - batch_size % ranks or ranks
        raise UsageError(
            f"train.batch_size {batch_size} is global and does not divide over {ranks} ranks; "
            f"use --set train.batch_size={near} or another --nproc-per-node"
        )
    per_rank = batch_size // ranks
    micro = micro_batch_size or per_rank
    if per_rank % micro:
        raise UsageError(
            f"train.micro_batch_size {micro} does not divide the {per_rank} samples of each rank "
            f"(batch_size {batch_size} / {ranks} ranks)"
        )
    return micro, per_rank // micro


def epoch_batches(
    samples: int,
    batch_size: int,
    seed: int,
    epoch: int,
    rank: int,
    ranks: int,
    first_step: int = 0,
    weights: torch.Tensor | None = None,
) -> list[list[int]]:
    """This rank's part of every global batch of an epoch, from `first_step` on.

    Without weights every sample comes at most once. With weights (N,) samples are drawn with replacement in proportion, and
    the k-th repetition of sample i in an epoch (k from 1) is i + k * N.
    """
    generator = torch.Generator().manual_seed(sample_seed(seed, epoch, "order"))
    steps, share = samples // batch_size, batch_size // ranks
    if weights is None:
        order = torch.randperm(samples, generator=generator)[: steps * batch_size]
    else:
        order = torch.multinomial(weights.double(), steps * batch_size, replacement=True, generator=generator)
        order = order + samples * _repetition(order)
    table = order.view(steps, ranks, share)[first_step:, rank]
    return table.tolist()


def _repetition(order: torch.Tensor) -> torch.Tensor:
    """How often each entry of (n,) came before: 7 3 7 7 -> 0 0 1 2."""
    by_value = order.argsort(stable=True)
    ordered = order[by_value]
    starts = torch.cat([torch.ones(1, dtype=torch.bool), ordered[1:] != ordered[:-1]])
    positions = torch.arange(len(order))
    first = torch.where(starts, positions, torch.zeros_like(positions)).cummax(0).values
    result = torch.empty_like(order)
    result[by_value] = positions - first
    return result


def balancing_weights(targets: torch.Tensor) -> torch.Tensor:
    """Sampling weights (N,) that make every class equally likely; targets (N,) or 0/1 (N, C).

    Multi-label rows weigh the mean of 1 / count over their classes; rows known to be without any finding are one class more. Rows
    of which only a part is known, and no finding, weigh as little as the least of the others; rows of which nothing is, nothing.
    """
    if targets.dim() == 1:
        return 1.0 / targets.bincount()[targets].double()
    rows = (targets == 1).double()
    healthy = (targets == 0).all(1).double()
    rows = torch.cat([rows, healthy[:, None]], 1)
    weights = (rows / rows.sum(0).clamp_min(1)).sum(1) / rows.sum(1).clamp_min(1)
    some = (targets == 0).any(1)
    return torch.where((weights == 0) & some, weights[weights > 0].min() if (weights > 0).any() else 1.0, weights)


def eval_batches(samples: int, batch_size: int, rank: int, ranks: int) -> list[list[int]]:
    """Whole batches dealt to ranks in turn: nothing is padded or repeated, and a batch is the same on any number of ranks."""
    starts = range(rank * batch_size, samples, ranks * batch_size)
    return [list(range(start, min(start + batch_size, samples))) for start in starts]
