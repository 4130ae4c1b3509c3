"""The next batch is read, and on its way to a GPU, while the step before is computed there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from time import perf_counter
from typing import Any

import torch

Streams = Mapping[str, Any]  # name of a data stream -> this rank's share of its batch


class Ahead:
    """What a step sees, stream by stream, in order; iterate over it.

    `fetch` is for the moment when a step has handed its work to the device and not yet waited for it: the host then reads the
    next batch, and the device copies it on a stream of its own. An error on the way is raised where that batch is asked for, so
    that the step before is whole.
    """

    def __init__(self, batches: Iterator[Streams], device: torch.device) -> None:
        self._batches, self._device = batches, device
        self._copies = _stream(device) if device.type == "cuda" else None
        self._next: Streams | Exception | None = None
        self._fetched = False
        self._marks: tuple[Any, Any] | None = None
        self._waited = 0.0

    def __iter__(self) -> Iterator[Streams]:
        return self

    def __next__(self) -> Streams:
        if not self._fetched:
            self.fetch()
        found, self._next, self._fetched = self._next, None, False
        if isinstance(found, Exception):
            raise found
        if found is None:
            raise StopIteration
        if self._copies is not None:
            now = torch.cuda.current_stream(self._device)
            now.wait_stream(self._copies)
            for tensor in _sent(found):
                tensor.record_stream(now)  # its memory was made on the other stream, and may be used again only after this one
        return found

    def fetch(self) -> None:
        """Read the next batch, unless that is done: a step may be repeated."""
        if self._fetched:
            return
        self._note_wait()
        begin = self._mark()
        try:
            self._next = self._send(next(self._batches, None))
        except Exception as error:
            self._next = error
        self._fetched, self._marks = True, (begin, self._mark())

    @property
    def waited(self) -> float:
        """Seconds in which nothing could be computed because a batch was not there yet."""
        self._note_wait()
        return self._waited

    def _send(self, streams: Streams | None) -> Streams | None:
        if streams is None or self._copies is None:
            return streams
        with torch.cuda.stream(self._copies):
            return {
                name: (*(part.to(self._device, non_blocking=True) for part in batch[:2]), *batch[2:])
                for name, batch in streams.items()
            }

    def _mark(self) -> Any:
        """This moment, by whoever computes: on a GPU, when what it has been handed so far is done."""
        if self._copies is None:
            return perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event

    def _note_wait(self) -> None:
        """Between two marks there is nothing but the reading: a GPU that had more to do meanwhile did not wait."""
        if self._marks is None:
            return
        begin, end = self._marks
        if self._copies is None:
            self._waited += end - begin
        else:
            end.synchronize()  # long since: the step has been waited for
            self._waited += begin.elapsed_time(end) / 1e3
        self._marks = None


@cache
def _stream(device: torch.device) -> Any:
    """One for all epochs: memory that was used on a stream is kept for it."""
    return torch.cuda.Stream(device)


def _sent(streams: Streams) -> Iterator[torch.Tensor]:
    for batch in streams.values():
        yield from batch[:2]
