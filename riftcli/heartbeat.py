"""When this process last got on, and with what: how ranks that wait for each other tell a slow one from a dead one (F15)."""

from __future__ import annotations

import time

_count, _what = 0, "starting"
limit = 600.0  # seconds without progress of anybody after which a run of several processes, or a data worker, is given up


def beat(what: str | None = None) -> None:
    """Something got done. what: one line of it; without, that of before stays."""
    global _count, _what
    _count += 1
    if what is not None:
        _what = what


def last() -> tuple[int, str]:
    """(a number that changes whenever something gets done, what that was)."""
    return _count, _what


def set_limit(seconds: float) -> None:
    """How long to wait for others, from now on."""
    global limit
    limit = seconds


class Watched:
    """What is known of one other process: its numbers as they were when they last changed, by our own clock."""

    def __init__(self) -> None:
        self.alive = self.moved = time.monotonic()
        self.numbers: tuple[int, int] = (-1, -1)  # its sign of life, and its progress
        self.host, self.pid, self.what = "?", -1, "has said nothing yet"

    def hear(self, sign: int, progress: int, host: str, pid: int, what: str) -> None:
        """Its latest message."""
        now = time.monotonic()
        if sign != self.numbers[0]:
            self.alive = now
        if progress != self.numbers[1]:
            self.moved = now
        self.numbers, self.host, self.pid, self.what = (sign, progress), host, pid, what


def silent_rank(ranks: list[Watched], seconds: float) -> int | None:
    """The rank for which all others wait: None while any of them got on within `seconds`, else the one that shows no sign of
    life, or else the one that got on least lately.
    """
    now = time.monotonic()
    if now - max(one.moved for one in ranks) <= seconds:
        return None
    quiet = min(range(len(ranks)), key=lambda rank: ranks[rank].alive)
    if now - ranks[quiet].alive > seconds / 2:
        return quiet
    return min(range(len(ranks)), key=lambda rank: ranks[rank].moved)
