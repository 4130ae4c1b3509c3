"""Files that are written while training goes on."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from riftcli.training.checkpoint import Tables

# Held while something is written, and around every fork: a data worker must not begin with the locks of a thread that it lacks.
_WRITING = threading.Lock()
os.register_at_fork(before=_WRITING.acquire, after_in_parent=_WRITING.release, after_in_child=_WRITING.release)


class Writer:
    """Does what it is given in a thread, one thing after another, in order. An error is raised by whoever comes next, and what
    was given after what failed is not done: a checkpoint must not name weights that are not there.

    What is given must hold copies, and must not draw random numbers: torch's generator belongs to the training.
    """

    def __init__(self) -> None:
        self._thread: ThreadPoolExecutor | None = None
        self._last: dict[str, Future[None]] = {}
        self._newest: Future[None] | None = None
        self._seen: set[str] = set()
        self._buffers: dict[tuple[str, str], torch.Tensor] = {}

    def submit(self, kind: str, work: Callable[[], None]) -> None:
        """Do it soon, and the first of a kind at once. The last one of the same kind is waited for, so that no more than one copy
        of each is held.
        """
        self.wait(kind)
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "riftcli-writer")
        self._newest = self._last[kind] = self._thread.submit(_alone, work, self._newest)
        if kind not in self._seen:
            # The first of a kind imports what it needs. Two threads that import at once can find a module half there (numpy 2.4
            # then asks itself for numpy.exceptions without end), so this one waits.
            self._seen.add(kind)
            self.wait(kind)

    def wait(self, kind: str | None = None) -> None:
        """Until everything of a kind is written, or everything at all; raise the error of what could not be."""
        for name in [kind] if kind else list(self._last):
            future = self._last.pop(name, None)
            if future is not None:
                future.result()

    def close(self) -> None:
        """Until everything is written; then without a thread, until something is given again. Raises as `wait` does."""
        try:
            self.wait()
        finally:
            if self._thread is not None:
                self._thread.shutdown()
                self._thread = None

    def copies(self, tables: Tables) -> Tables:
        """The tensors as they are now, on the CPU; from a GPU through pinned memory that is used again the next time."""
        found = {name: {key: self._copy(name, key, value) for key, value in table.items()} for name, table in tables.items()}
        if any(value.is_cuda for table in tables.values() for value in table.values()):
            torch.cuda.current_stream().synchronize()
        return found

    def _copy(self, name: str, key: str, value: torch.Tensor) -> torch.Tensor:
        value = value.detach()
        if value.device.type != "cuda":
            return value.cpu().clone()
        buffer = self._buffers.get((name, key))
        if buffer is None or buffer.shape != value.shape or buffer.dtype != value.dtype:
            buffer = torch.empty(value.shape, dtype=value.dtype, pin_memory=True)
            self._buffers[name, key] = buffer
        return buffer.copy_(value, non_blocking=True)


def _alone(work: Callable[[], None], before: Future[None] | None) -> None:
    if before is not None:
        before.result()
    with _WRITING:
        work()
