"""Batches: which samples a step sees is a pure function of (seed, epoch, step), whatever the number of ranks and workers."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from riftcli import heartbeat, signals
from riftcli.data.batches import eval_batches, sample_seed
from riftcli.data.split import Split
from riftcli.errors import DataError, EnvironmentError

# Seconds before workers are forked. A thread of a collective that has just ended may still be entering Python; a fork in that
# moment copies the interpreter's lock in its locked state, and the worker waits for it forever (seen with CPython 3.11).
QUIET = 0.05

# What a launcher, a scheduler or a terminal sends to a whole process group.
GROUP_SIGNALS = {signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT}

Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # images uint8 (n, 3, H, W), targets, positions in the split (n,)
TextBatch = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]  # the same, and the number of each sample's text (n,)


class ImageDataset(Dataset):
    """A split through a transform; item i is (image, target, i). i + k * N is sample i once more, augmented in another way.

    views: so many fixed augmentations of each sample, in turn: the k-th time in epoch e shows view v = (e + k) mod views, and the
    item is (image, target, i + v * N), so that a table of the features of all views can be looked up with it.
    """

    def __init__(
        self, split: Split, transform: Callable[[Any, int], torch.Tensor], seed: int, epoch: int, views: int | None = None
    ) -> None:
        self.split, self.transform, self.seed, self.epoch, self.views = split, transform, seed, epoch, views
        self.targets = torch.from_numpy(split.targets)

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, code: int) -> tuple[torch.Tensor, torch.Tensor, int]:
        again, i = divmod(code, len(self.split))
        if self.views:
            view = (self.epoch + again) % self.views
            seed, place = sample_seed(self.seed, view, self.split.ids[i]), i + view * len(self.split)
        else:
            seed, place = sample_seed(self.seed, self.epoch, self.split.ids[i] + f"#{again}" * bool(again)), i
        try:
            return self.transform(self.split.read(i), seed), self.targets[i], place
        except DataError as error:
            raise DataError(f"{str(error)} [split '{self.split.name}', sample '{self.split.ids[i]}']") from None


class ImageTextDataset(ImageDataset):
    """Images, each with one of its texts: item i is (image, target, i, number of the text).

    first (N,), count (N,): sample i has the texts first[i] .. first[i] + count[i] - 1; which of them it comes with is drawn anew
    in every epoch, from the sample's own seed.
    """

    def __init__(self, *args: Any, first: torch.Tensor, count: torch.Tensor, **options: Any) -> None:
        super().__init__(*args, **options)
        self.first, self.count = first, count

    def __getitem__(self, code: int) -> tuple[torch.Tensor, torch.Tensor, int, int]:  # type: ignore[override]
        again, i = divmod(code, len(self.split))
        seed = sample_seed(self.seed, self.epoch, f"{self.split.ids[i]}#text{again}")
        return *super().__getitem__(code), int(self.first[i]) + seed % int(self.count[i])


class TensorTable(Dataset):
    """Precomputed features in place of images; item i is (features, target, i)."""

    def __init__(self, features: torch.Tensor, targets: torch.Tensor) -> None:
        self.features, self.targets = features, targets

    def __len__(self) -> int:
        return self.features.shape[0]

    def __getitem__(self, code: int) -> tuple[torch.Tensor, torch.Tensor, int]:
        i = code % len(self)
        return self.features[i], self.targets[i], i


def train_loader(dataset: Dataset, batches: list[list[int]], workers: int) -> Iterator[Batch]:
    """Batches in the given order."""
    return _iterate(DataLoader(dataset, batch_sampler=batches, **_workers(workers)))


def eval_loader(
    split: Split, transform: Any, batch_size: int, workers: int, rank: int, ranks: int, seed: int = 0, view: int = 0
) -> Iterator[Batch]:
    """This rank's batches of a split, in order. seed, view: for a transform that augments, the view that training shows."""
    dataset = ImageDataset(split, transform, seed, epoch=view)
    batches = eval_batches(len(split), batch_size, rank, ranks)
    workers = 0 if len(split) <= 4 * batch_size else workers  # a worker costs more to start than a small split
    return _iterate(DataLoader(dataset, batch_sampler=batches, **_workers(workers)))


def _iterate(loader: DataLoader) -> Iterator[Batch]:
    """The loader, with a worker's error as the one line it was before torch wrapped it in a traceback."""
    if loader.num_workers:
        time.sleep(QUIET)
    done, batches, watch = 0, _start(loader), None
    try:
        if loader.num_workers:
            watch = _WorkerWatch([process.pid for process in batches._workers], heartbeat.limit)  # type: ignore[attr-defined]
        while True:
            with watch.waiting() if watch else nullcontext():
                batch = next(batches, None)
            if batch is None:
                return
            done += 1
            yield batch
    except DataError as error:
        raise DataError(str(error).strip().splitlines()[-1].removeprefix("riftcli.errors.DataError: ")) from None
    except (RuntimeError, EOFError, OSError) as error:
        if watch is None or not (watch.gave_up or "DataLoader" in str(error)):
            raise
        raise EnvironmentError(
            f"batch {done + 1} did not come: a data worker {watch.gave_up or 'was killed (out of memory?)'}; fewer train.workers "
            "need less memory, train.workers=0 has none"
        ) from None
    finally:
        if watch:
            watch.end()


class _WorkerWatch(threading.Thread):
    """Kills data workers that give no batch for `limit` seconds: whoever waits for one that was stopped waits for ever (F15).

    The time-out of torch's loader does not do: it is not at work while the parent asks a worker for a batch that it has.
    """

    def __init__(self, pids: list[int], limit: float) -> None:
        super().__init__(daemon=True)
        self.pids, self.limit, self.gave_up = pids, limit, ""
        self._since: float | None = None
        self._ended = threading.Event()
        self.start()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Inside the block a batch is waited for."""
        self._since = time.monotonic()
        try:
            yield
        finally:
            self._since = None

    def run(self) -> None:
        """Until the last batch."""
        while not self._ended.wait(min(1.0, self.limit / 4)):
            since = self._since
            if since is None or time.monotonic() - since < self.limit:
                continue
            states = {pid: _state(pid) for pid in self.pids}
            odd = [f"{pid} ({state})" for pid, state in states.items() if state != "runs"] or [str(pid) for pid in self.pids]
            self.gave_up = f"gave none for {self.limit:.0f} s (process {', '.join(odd)})"
            for pid in self.pids:
                with suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
            return

    def end(self) -> None:
        """There is nothing to watch any more."""
        self._ended.set()


def _state(pid: int) -> str:
    """How a process of this machine is, in a word."""
    try:
        letter = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return "gone"
    return {"T": "stopped", "t": "stopped", "Z": "dead", "D": "waits for a disk"}.get(letter, "runs")


def _start(loader: DataLoader) -> Iterator[Batch]:
    """Start the workers with the group's signals held back: one that comes before a worker has left the group must not kill it.

    A worker inherits the mask. This process is not deaf meanwhile: another of its threads, or else the end of the mask, takes
    the signal, and Python's handler runs.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, GROUP_SIGNALS if loader.num_workers else set())
    try:
        return iter(loader)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _leave_the_group(worker: int) -> None:
    """A launcher or scheduler signals the whole process group: the rank saves and ends, and needs its workers until then.

    Ignoring the signal instead would make a worker immune to its own parent, which then waits for it forever at exit.
    """
    os.setpgrp()
    signals.use_defaults()
    while arrived := signal.sigpending() & GROUP_SIGNALS:  # sent to the group between the fork and here: not meant for us
        signal.sigwait(arrived)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, GROUP_SIGNALS)


def _workers(workers: int) -> dict[str, Any]:
    # Its own generator: without one, every iterator draws its seed from the global stream, and a run resumed in the
    # middle of an epoch would see other drop paths than one that was never interrupted.
    generator = torch.Generator().manual_seed(0)
    return {
        "num_workers": workers,
        "pin_memory": torch.cuda.is_available(),
        "generator": generator,
        "worker_init_fn": _leave_the_group,
    }
