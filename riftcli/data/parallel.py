"""One function over many items in several processes, in order, with progress."""

from __future__ import annotations

import multiprocessing
import os
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
MOST_WORKERS = 16  # that read images for one rank, unless more are asked for


def cores() -> int:
    """Processor cores that this process may use: what a scheduler gave it, not what the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def data_workers(wanted: int | Literal["auto"]) -> int:
    """Processes that read images for one rank: as many as wanted, or the cores of this rank but the one that trains."""
    if wanted != "auto":
        return wanted
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # torchrun's: of this machine
    return max(0, min(MOST_WORKERS, cores() // ranks - 1))


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
