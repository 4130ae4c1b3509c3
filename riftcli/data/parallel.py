"""One function over many items in several processes, in order, with progress."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Literal, TypeVar

from riftcli.errors import RiftError

Item = TypeVar("Item")
Result = TypeVar("Result")

FEW = 64  # a process costs more to start than so few images to decode
CHUNK = 8
SMALL = 1 << 30  # bytes of /dev/shm below which data workers that hand over batches can run out
FEW_WORKERS, MOST_WORKERS = 2, 16  # that read images for one rank, unless more are asked for


def cores() -> int:
    """Processor cores that this process may use: what a scheduler gave it, not what the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def data_workers(wanted: int | Literal["auto"]) -> int:
    """Processes that read images for one rank: as many as wanted, or the cores of this rank but the one that trains, and few
    where there is little shared memory to hand batches over in.
    """
    if wanted != "auto":
        return wanted
    return max(0, min(MOST_WORKERS if _shared_memory() >= SMALL else FEW_WORKERS, cores_of_rank() - 1))


def cores_of_rank() -> int:
    """Cores for each of the ranks on this machine."""
    return cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # torchrun's


def _shared_memory() -> int:
    """Free bytes of /dev/shm; of containers 64 MB unless they are told otherwise."""
    try:
        return shutil.disk_usage("/dev/shm").free
    except OSError:  # another system, which shares otherwise
        return SMALL


def _worker(parent: int) -> None:
    """A signal to the group is the parent's to handle, so leave it; but go when the parent is gone, however it ended."""
    os.setpgrp()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def in_parallel(function: Callable[[Item], Result], items: Sequence[Item], workers: int | None = None) -> Iterator[Result]:
    """function(item) for every item, in order. `function` must be importable and its module light: workers are fresh."""
    workers = cores() if workers is None else workers
    if workers <= 1 or len(items) <= FEW:
        yield from map(function, items)
        return
    # spawn: a fork of a process with torch's threads can hang
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_worker, initargs=(os.getpid(),)) as pool:
        # a bounded window: results are as large as images, and must not pile up behind a slow consumer
        window = workers * CHUNK * 4
        try:
            for start in range(0, len(items), window):
                yield from pool.map(function, items[start : start + window], chunksize=CHUNK)
        except BrokenProcessPool as error:
            raise RiftError("a process that reads images was killed (out of memory?); use fewer cores (taskset)") from error
