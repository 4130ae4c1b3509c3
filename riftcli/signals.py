"""SIGTERM, SIGUSR1, SIGHUP and Ctrl-C: what is under way ends in order, within a step or a batch; a second one, at once."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from riftcli.errors import Interrupted, Terminated

NUMBERS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
SAME = 1.0  # seconds within which a second signal is the first once more: a scheduler sends it to the launcher and its workers


class StopRequested(Exception):
    """Inside `deferred`: a signal came, and every rank has agreed to stop here."""


class _State:
    handled = False
    deferring = False
    received: signal.Signals | None = None
    at = 0.0


_state = _State()


@contextmanager
def handled() -> Iterator[None]:
    """Inside the block a signal raises Terminated (exit 143), or KeyboardInterrupt for Ctrl-C (exit 130), wherever it comes.

    Signals that were ignored before, as SIGHUP is by nohup, stay so. Does nothing inside another block, or outside the main
    thread: whoever embeds us handles signals there.
    """
    if _state.handled:
        yield
        return
    before: dict[int, Any] = {}
    try:
        for number in NUMBERS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                before[int(number)] = signal.signal(number, _handle)
    except ValueError:
        yield
        return
    _state.handled, _state.deferring, _state.received = True, False, None
    try:
        yield
    finally:
        _state.handled, _state.received = False, None
        for one, handler in before.items():
            signal.signal(one, handler)


@contextmanager
def deferred() -> Iterator[None]:
    """Inside the block a signal is only noted, for `received`; one that nobody acted upon takes effect when it ends."""
    _state.deferring = True
    try:
        yield
    finally:
        _state.deferring = False
    if _state.received is not None:
        raise _exception(_state.received)


def received() -> signal.Signals | None:
    """The signal that came while it was deferred, if any."""
    return _state.received


def stopped(text: str) -> Terminated:
    """The exception of a run that ended in order on the signal that came; of ranks that got none, as on SIGTERM."""
    return Interrupted(text) if _state.received == signal.SIGINT else Terminated(text)


def use_defaults() -> None:
    """In a data worker, which was forked off: our handlers are not for it. torch has its own there for SIGTERM."""
    for number in NUMBERS[1:]:
        with suppress(ValueError):
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, signal.SIG_DFL)


def _exception(number: int) -> BaseException:
    return KeyboardInterrupt() if number == signal.SIGINT else Terminated(f"stopped by {signal.Signals(number).name}")


def _handle(number: int, frame: Any) -> None:
    now = time.monotonic()
    if _state.received is not None:
        if number == _state.received and now - _state.at < SAME:
            return
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
        return
    _state.received, _state.at = signal.Signals(number), now
    if not _state.deferring:
        raise _exception(number)
    if os.environ.get("RANK", "0") == "0":
        name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
        with suppress(OSError):  # not print: this may have come in the middle of one
            os.write(2, f"\n{name}: finishing this step, then saving; once more ends it at once\n".encode())
