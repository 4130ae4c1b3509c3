"""The next batch is there when a step ends: in the right order, copied beside the step, and what goes wrong waits its turn."""

from __future__ import annotations

import time
from contextlib import contextmanager

import pytest
import torch

from riftcli.errors import DataError
from riftcli.training.ahead import Ahead

CPU = torch.device("cpu")


def batches(count: int, log: list, seconds: float = 0.0):
    for i in range(count):
        time.sleep(seconds)
        log.append(f"read {i}")
        yield {"task": (torch.tensor([i]), torch.tensor([i]), torch.tensor([i]))}


def test_a_batch_is_read_while_the_step_before_is_under_way_and_never_twice():
    log: list[str] = []
    ahead, seen = Ahead(batches(3, log), CPU), []
    for streams in ahead:
        seen.append(int(streams["task"][0]))
        log.append(f"step {seen[-1]}")
        ahead.fetch()
        ahead.fetch()  # of a step that is repeated
    assert seen == [0, 1, 2]
    assert log == ["read 0", "step 0", "read 1", "step 1", "read 2", "step 2"]
    assert [int(s["task"][0]) for s in Ahead(batches(3, []), CPU)] == [0, 1, 2], "nobody has to fetch"


def test_an_error_is_raised_where_its_batch_is_asked_for():
    def broken():
        yield from batches(2, [])
        raise DataError("a damaged image")

    ahead, steps = Ahead(broken(), CPU), []
    with pytest.raises(DataError, match="a damaged image"):
        for streams in ahead:
            ahead.fetch()
            steps.append(int(streams["task"][0]))
    assert steps == [0, 1], "the step before is whole"


def test_what_is_waited_for_is_counted():
    ahead = Ahead(batches(4, [], seconds=0.05), CPU)
    for _ in ahead:
        time.sleep(0.05)
        ahead.fetch()
    assert 0.2 <= ahead.waited < 0.39


class Device:
    """Streams and events of a GPU, which write down what they are told."""

    def __init__(self, log: list[str], clock: list[float]) -> None:
        self.log, self.clock, self.at = log, clock, "main"

    def Stream(self, device: torch.device) -> str:
        return "copies"

    @contextmanager
    def stream(self, name: str):
        self.at, before = name, self.at
        yield
        self.at = before

    def current_stream(self, device: torch.device) -> Device:
        return self

    def wait_stream(self, other: str) -> None:
        self.log.append(f"{self.at} waits for {other}")

    def Event(self, enable_timing: bool) -> Event:
        assert enable_timing
        return Event(self)


class Event:
    def __init__(self, device: Device) -> None:
        self.device = device

    def record(self, stream: Device) -> None:
        self.at = self.device.clock[0]

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, other: Event) -> float:
        return 1e3 * (other.at - self.at)


class Pixels:
    """A tensor in pinned memory that notes where it is copied and who may use it."""

    def __init__(self, name: str, device: Device) -> None:
        self.name, self.device = name, device

    def to(self, where: torch.device, non_blocking: bool) -> Pixels:
        assert non_blocking and where.type == "cuda"
        self.device.log.append(f"copy {self.name} on {self.device.at}")
        return self

    def record_stream(self, stream: Device) -> None:
        self.device.log.append(f"{self.name} used on {stream.at}")


def test_on_a_gpu_copies_go_beside_the_step_and_are_waited_for_before_they_are_used(monkeypatch):
    """In order: read, copy on a stream of its own, then the step's stream waits for that one. A device that is not done with the
    step when the batch is there has not waited.
    """
    log: list[str] = []
    clock = [0.0]  # when the device is done with what it was given
    device = Device(log, clock)
    for name in ("Stream", "stream", "current_stream", "Event"):
        monkeypatch.setattr(torch.cuda, name, getattr(device, name))

    def pixels():
        for i in range(2):
            clock[0] += 0.5 * i  # the second batch comes half a second after the device was done
            yield {"task": (Pixels(f"images {i}", device), Pixels(f"targets {i}", device), "positions")}

    ahead = Ahead(pixels(), torch.device("cuda"))
    for streams in ahead:
        assert streams["task"][2] == "positions", "they stay on the host, which looks features up by them"
        log.append("step")
        ahead.fetch()
    one = ["copy images {0} on copies", "copy targets {0} on copies"]
    two = ["main waits for copies", "images {0} used on main", "targets {0} used on main", "step"]
    assert log == [line.format(i) for i, line in [(0, x) for x in one + two] + [(1, x) for x in one + two]]
    assert ahead.waited == pytest.approx(0.5)
