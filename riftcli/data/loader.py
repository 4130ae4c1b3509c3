"""Batches: which samples a step sees is a pure function of (seed, epoch, step), whatever the number of ranks and workers."""

from __future__ import annotations

import itertools
import math
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import torch
from torch.utils.data import DataLoader, Dataset

from riftcli import heartbeat, signals
from riftcli.data.batches import eval_batches, sample_seed
from riftcli.data.kept_images import KeptPart
from riftcli.data.parallel import data_workers
from riftcli.data.split import Split, read_pixels
from riftcli.errors import DataError, EnvironmentError

# Seconds before workers are forked. A thread of a collective that has just ended may still be entering Python; a fork in that
# moment copies the interpreter's lock in its locked state, and the worker waits for it forever (seen with CPython 3.11).
QUIET = 0.05

CHUNK = 32  # images that a worker reads at a time
LITTLE = 4096  # images in memory: a process costs more to start than to read them
MOST_KEPT = 512 << 20  # bytes a rank
AHEAD = 2  # whole batches that wait

# What a launcher, a scheduler or a terminal sends to a whole process group.
GROUP_SIGNALS = {signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT}

Workers = int | Literal["auto"]
Item = tuple[int, int]  # epoch, position in the split (see ImageDataset)
Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # images uint8 (n, 3, H, W), targets, positions in the split (n,)
TextBatch = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]  # the same, and the number of each sample's text (n,)


class ImageDataset(Dataset):
    """A split through a transform; item (e, i) is (image, target, i) of sample i in epoch e; i + k * N is the same sample once
    more, augmented in another way.

    views: so many fixed augmentations of each sample, in turn: the k-th time in epoch e shows view v = (e + k) mod views, and the
    item is (image, target, i + v * N), so that a table of the features of all views can be looked up with it.
    shown: keeps what the transform returned, which is the same in every epoch.
    """

    def __init__(
        self,
        split: Split,
        transform: Callable[[Any, int], torch.Tensor],
        seed: int,
        views: int | None = None,
        shown: KeptPart | None = None,
    ) -> None:
        self.split, self.transform, self.seed, self.views, self.shown = split, transform, seed, views, shown
        self.targets = torch.from_numpy(split.targets)

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, item: Item) -> tuple[torch.Tensor, torch.Tensor, int]:
        epoch, (again, i) = item[0], divmod(item[1], len(self.split))
        if self.shown is not None:
            return self._shown(self.shown, i), self.targets[i], i
        if self.views:
            view = (epoch + again) % self.views
            seed, place = sample_seed(self.seed, view, self.split.ids[i]), i + view * len(self.split)
        else:
            seed, place = sample_seed(self.seed, epoch, self.split.ids[i] + f"#{again}" * bool(again)), i
        return self._image(i, seed), self.targets[i], place

    def _image(self, i: int, seed: int) -> torch.Tensor:
        try:
            return self.transform(read_pixels(self.split.read, i), seed)
        except DataError as error:
            raise DataError(f"{str(error)} [split '{self.split.name}', sample '{self.split.ids[i]}']") from None

    def _shown(self, kept: KeptPart, i: int) -> torch.Tensor:
        known = kept.get(i)
        if known is None:
            known = self._image(i, 0)
            kept.put(i, known.permute(1, 2, 0).numpy())
        return known


class ImageTextDataset(ImageDataset):
    """Images, each with one of its texts: item i is (image, target, i, number of the text).

    first (N,), count (N,): sample i has the texts first[i] .. first[i] + count[i] - 1; which of them it comes with is drawn anew
    in every epoch, from the sample's own seed.
    """

    def __init__(self, *args: Any, first: torch.Tensor, count: torch.Tensor, **options: Any) -> None:
        super().__init__(*args, **options)
        self.first, self.count = first, count

    def __getitem__(self, item: Item) -> tuple[torch.Tensor, torch.Tensor, int, int]:  # type: ignore[override]
        again, i = divmod(item[1], len(self.split))
        seed = sample_seed(self.seed, item[0], f"{self.split.ids[i]}#text{again}")
        return *super().__getitem__(item), int(self.first[i]) + seed % int(self.count[i])


class TensorTable(Dataset):
    """Precomputed features in place of images; item (e, i) is (features, target, i) in every epoch e."""

    def __init__(self, features: torch.Tensor, targets: torch.Tensor) -> None:
        self.features, self.targets = features, targets

    def __len__(self) -> int:
        return self.features.shape[0]

    def __getitem__(self, item: Item) -> tuple[torch.Tensor, torch.Tensor, int]:
        i = item[1] % len(self)
        return self.features[i], self.targets[i], i


def train_loader(dataset: Dataset, batches: Iterable[list[Item]], workers: Workers) -> Iterator[Batch]:
    """Batches in the given order, for as long as there are any: workers are started once, and go on from epoch to epoch."""
    return _batches(dataset, batches, workers)


def eval_loader(
    split: Split, transform: Any, batch_size: int, workers: Workers, rank: int, ranks: int, seed: int = 0, view: int = 0
) -> Iterator[Batch]:
    """This rank's batches of a split, in order. seed, view: for a transform that augments, the view that training shows."""
    dataset = ImageDataset(split, transform, seed)
    batches = [[(view, i) for i in batch] for batch in eval_batches(len(split), batch_size, rank, ranks)]
    workers = 0 if len(split) <= 4 * batch_size else workers  # a worker costs more to start than a small split
    return _batches(dataset, batches, workers)


def _batches(dataset: Dataset, batches: Iterable[list[Item]], wanted: Workers) -> Iterator[Batch]:
    """Whole batches. Workers read chunks of them, so that the first one is there sooner and all have as much to do."""
    little = isinstance(dataset, ImageDataset) and dataset.split.paths is None and len(dataset) <= LITTLE
    unneeded = isinstance(dataset, TensorTable) or (little and wanted == "auto")
    workers = 0 if unneeded else data_workers(wanted)
    if not workers:
        yield from _iterate(DataLoader(dataset, batch_sampler=batches, **_workers(0)))
        return
    chunks = _Chunks(batches)
    ahead = max(2, math.ceil(AHEAD * chunks.of_first / workers))
    loader = DataLoader(dataset, batch_sampler=chunks, prefetch_factor=ahead, **{**_workers(workers), "pin_memory": False})
    parts: list[Any] = []
    for part in _iterate(loader, chunks):
        parts.append(part)
        if len(parts) == chunks.counts[0]:
            yield _whole(parts)
            chunks.counts.popleft()
            chunks.done += 1
            parts = []


def _whole(parts: list[Any]) -> Batch:
    """The parts of a batch, one behind the other, in memory that a GPU reads by itself."""
    pinned = torch.cuda.is_available()
    found = []
    for tensors in zip(*parts, strict=True):
        shape = (sum(map(len, tensors)), *tensors[0].shape[1:])
        found.append(torch.cat(tensors, out=torch.empty(shape, dtype=tensors[0].dtype, pin_memory=pinned)))
    return tuple(found)  # type: ignore[return-value]


class KeptBatches:
    """The batches of splits that are evaluated again and again, decoded once: uint8, in memory, up to MOST_KEPT bytes."""

    def __init__(self) -> None:
        self._kept: dict[int, tuple[Split, list[Batch]]] = {}
        self._bytes = 0

    def of(self, split: Split, load: Callable[[], Iterator[Batch]]) -> Iterator[Batch]:
        """The batches of a split: from memory where they have been seen whole, else as `load` reads them."""
        known = self._kept.get(id(split))
        if known is not None:
            yield from known[1]
            return
        seen: list[Batch] = []
        own = 0
        for batch in load():
            own += batch[0].nbytes
            if own + self._bytes <= MOST_KEPT:
                seen.append(batch)
            else:
                seen.clear()
            yield batch
        if own + self._bytes <= MOST_KEPT:  # here only when all were asked for
            self._kept[id(split)] = (split, seen)
            self._bytes += own


class _Chunks:
    """Parts of batches, in order. counts: how many each batch has that is under way; done: batches that came."""

    def __init__(self, batches: Iterable[list[Item]]) -> None:
        self.batches = iter(batches)
        first = next(self.batches, [])
        self.batches = itertools.chain([first] if first else [], self.batches)
        self.counts: deque[int] = deque()
        self.of_first, self.done = math.ceil(len(first) / CHUNK), 0

    def __iter__(self) -> Iterator[list[Item]]:
        for batch in self.batches:
            count = math.ceil(len(batch) / CHUNK)
            self.counts.append(count)
            bounds = [k * len(batch) // count for k in range(count + 1)]
            yield from (batch[start:end] for start, end in itertools.pairwise(bounds))


def _iterate(loader: DataLoader, chunks: _Chunks | None = None) -> Iterator[Any]:
    """The loader, with a worker's error as the one line it was before torch wrapped it in a traceback."""
    if loader.num_workers:
        time.sleep(QUIET)
    batches, watch = _start(loader), None
    try:
        if loader.num_workers:
            watch = _WorkerWatch([process.pid for process in batches._workers], heartbeat.limit)  # type: ignore[attr-defined]
        while True:
            with watch.waiting() if watch else nullcontext():
                batch = next(batches, None)
            if batch is None:
                return
            yield batch
    except DataError as error:
        raise DataError(str(error).strip().splitlines()[-1].removeprefix("riftcli.errors.DataError: ")) from None
    except (RuntimeError, EOFError, OSError) as error:
        lost = isinstance(error, EOFError | ConnectionError)  # it died while its batch was being handed over
        if watch is None or not (watch.gave_up or lost or "DataLoader" in str(error)):
            raise
        done = chunks.done if chunks else 0
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


def _say_unless_gone(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """A thread of multiprocessing hands tensors over, and prints a traceback when the rank that just asked for one has ended,
    which says itself why. Nothing else of a worker comes here.
    """
    if not issubclass(kind, ConnectionError | EOFError):
        sys.__excepthook__(kind, error, trace)


def _leave_the_group(worker: int) -> None:
    """A launcher or scheduler signals the whole process group: the rank saves and ends, and needs its workers until then.

    Ignoring the signal instead would make a worker immune to its own parent, which then waits for it forever at exit.
    """
    sys.excepthook = _say_unless_gone
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
