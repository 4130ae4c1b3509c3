"""Several processes as one: who we are, and collectives whose gradients are exact.

Everything here also works in a single process, where it does nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import signal
import sys
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as td

from riftcli import heartbeat, launch
from riftcli.errors import EnvironmentError

COLLECTIVE = timedelta(minutes=30)  # that one may take; whether anybody gets on is watched apart


def launched() -> bool:
    """True inside a worker of torchrun or of our own launcher."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def rank() -> int:
    """Rank of this process in the whole job."""
    return td.get_rank() if td.is_initialized() else 0


def world_size() -> int:
    """Number of processes in the job."""
    return td.get_world_size() if td.is_initialized() else 1


def is_main() -> bool:
    """True in the one process that prints and writes."""
    return rank() == 0


def init(device: str = "auto") -> torch.device:
    """Join the process group if launched by torchrun and return this rank's device; raise EnvironmentError without it."""
    local_rank = int(os.environ.get("LOCAL_RANK", 0)) if launched() else 0
    chosen = pick_device(device, local_rank)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if launched() and not td.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo"
        # A prefix of our own: where torchrun shares its store with the workers, those that it starts once more would find the
        # addresses of the dead (seen with torch 2.14, --standalone --max-restarts 1).
        shared, own_rank, ranks = next(td.rendezvous("env://", timeout=COLLECTIVE))
        store = td.PrefixStore(f"riftcli-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", shared)
        td.init_process_group(backend, store=store, rank=own_rank, world_size=ranks, timeout=COLLECTIVE)
        if world_size() > 1:
            threading.Thread(target=_watch, daemon=True).start()
    return chosen


def _watch() -> None:
    """Tell the other ranks of our progress and look at theirs; end this process with one line when nobody gets on any more (F15).

    A rank that was stopped, or hangs, otherwise leaves all others waiting in a collective, without a word.
    """
    store = td.PrefixStore("riftcli-heartbeat", td.distributed_c10d._get_default_store())
    ranks, sign = [heartbeat.Watched() for _ in range(world_size())], 0
    while td.is_initialized():
        sign += 1
        progress, what = heartbeat.last()
        try:
            store.set(str(rank()), json.dumps([sign, progress, platform.node(), os.getpid(), what]))
            for other, watched in enumerate(ranks):
                if store.check([str(other)]):
                    watched.hear(*json.loads(store.get(str(other))))
        except (RuntimeError, ValueError):  # the group is being taken down
            return
        silent = heartbeat.silent_rank(ranks, heartbeat.limit)
        if silent is not None:
            one = ranks[silent]
            error = EnvironmentError(
                f"no progress for {heartbeat.limit:.0f} s: rank {silent} on {one.host} does not get on (last word: {one.what}); "
                "what was saved is whole: go on with --resume; launch.timeout waits longer"
            )
            launch.record_worker_error(error, str(error), ended=silent)
            if silent != rank() and launch.is_worker(one.pid, silent):  # one that was stopped does not end when it is asked to
                with contextlib.suppress(OSError):
                    os.kill(one.pid, signal.SIGKILL)
            if not os.environ.get("RIFT_LAUNCHED"):
                print(f"error: {error}", file=sys.stderr, flush=True)
            os._exit(error.exit_code)
        time.sleep(min(5.0, heartbeat.limit / 10))


def close() -> None:
    """Leave the process group."""
    if td.is_initialized():
        td.destroy_process_group()


def pick_device(spec: str, local_rank: int = 0) -> torch.device:
    """auto, cpu, cuda or cuda:N as a device that is there; raise EnvironmentError."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if spec == "auto":
        spec = "cuda" if count else "cpu"
    try:
        device = torch.device(spec)
    except RuntimeError as error:
        raise EnvironmentError(f"--device {spec}: no such kind of device; use auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda":
        index = device.index if device.index is not None else local_rank
        if index >= count:
            raise EnvironmentError(
                f"--device {spec}: no such GPU: cuda:{index} was asked for and this machine has {count} visible to torch; "
                "use --device cpu, fewer processes, or run `rift doctor`"
            )
        return torch.device("cuda", index)
    return device


def barrier() -> None:
    """Wait for every rank."""
    if world_size() > 1:
        td.barrier()


def broadcast_object(value: Any) -> Any:
    """Rank 0's value, on every rank."""
    if world_size() == 1:
        return value
    box = [value]
    td.broadcast_object_list(box, src=0)
    return box[0]


def broadcast_tables(tables: list[torch.Tensor] | None) -> list[torch.Tensor] | None:
    """Rank 0's tensors on the CPU, or its None, on every rank: as they are, where an object would be pickled."""
    if world_size() == 1:
        return tables
    about = broadcast_object(None if tables is None else [(table.shape, table.dtype) for table in tables])
    if about is None:
        return None
    found = [table.contiguous() for table in tables] if tables is not None and is_main() else None
    found = found or [torch.empty(shape, dtype=kind) for shape, kind in about]
    broadcast_tensors(found)
    return found


def gather_objects(value: Any) -> list[Any]:
    """Every rank's value, in rank order, on every rank."""
    if world_size() == 1:
        return [value]
    box: list[Any] = [None] * world_size()
    td.all_gather_object(box, value)
    return box


def sum_over_ranks(value: torch.Tensor) -> torch.Tensor:
    """Sum of a small tensor over ranks, outside the graph."""
    if world_size() == 1:
        return value
    total = value.detach().clone()
    td.all_reduce(total)
    return total


def broadcast_tensors(tensors: list[torch.Tensor]) -> None:
    """Overwrite each tensor with rank 0's, so that ranks start from the same bits."""
    if world_size() > 1:
        for tensor in tensors:
            td.broadcast(tensor, src=0)


def concatenated(rows: torch.Tensor) -> torch.Tensor:
    """The rows of every rank in rank order, on every rank; outside the graph, on the CPU, and of any number on each."""
    if world_size() == 1:
        return rows
    counts = gather_objects(len(rows))
    parts = [rows.contiguous() if r == rank() else rows.new_empty(n, *rows.shape[1:]) for r, n in enumerate(counts)]
    for source, part in enumerate(parts):
        td.broadcast(part, src=source)
    return torch.cat(parts)


def one_rank_at_a_time(tensors: list[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    """The tensors of every rank, on every rank, one rank after the other; on the CPU, and of one shape everywhere."""
    for source in range(world_size()):
        found = [tensor.contiguous() if source == rank() else torch.empty_like(tensor) for tensor in tensors]
        if world_size() > 1:
            for tensor in found:
                td.broadcast(tensor, src=source)
        yield found


class _GatherRows(torch.autograd.Function):
    """All-gather along rows. A plain all_gather inside autograd cuts the graph, and re-inserting the own slice gives
    gradients off by 1/world_size. Every rank computes the same loss of the gathered rows, so the gradient of the sum of
    all ranks' losses is the all-reduced gradient; DDP's mean over ranks then divides by world_size exactly once.
    """

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor) -> torch.Tensor:
        parts = [torch.empty_like(rows) for _ in range(world_size())]
        td.all_gather(parts, rows.contiguous())
        ctx.rows = rows.shape[0]
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
        grad = grads[0].contiguous().clone()
        td.all_reduce(grad)
        start = rank() * ctx.rows
        return grad[start : start + ctx.rows]


def gather_rows(rows: torch.Tensor) -> torch.Tensor:
    """The rows of every rank in rank order, differentiable; (n_local, D) -> (n, D). All ranks must hold equally many."""
    return rows if world_size() == 1 else _GatherRows.apply(rows)
