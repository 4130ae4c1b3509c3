"""How much memory this process may still take."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

PROC = Path("/proc")
GROUPS = Path("/sys/fs/cgroup")  # Linux's control groups: what a container or a job of a cluster may use
# Of version 2 and 1: the limit, what is used of it, and the parts of that which are given back when memory is wanted.
FILES = {
    "": ("memory.max", "memory.current", ("inactive_file", "active_file", "slab_reclaimable")),
    "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_inactive_file", "total_active_file")),
}


def free_memory() -> int | None:
    """Bytes that are free on this machine, or in the container or job that this process belongs to, where these are fewer; None
    where the machine does not say.
    """
    try:
        lines = (PROC / "meminfo").read_text().splitlines()
    except OSError:
        return None
    whole = next((1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), None)
    return whole if whole is None else max(0, min([whole, *_free_of_groups()]))


def _free_of_groups() -> Iterator[int]:
    """Of this process's control group and those above it, where they have limits."""
    try:
        lines = (PROC / "self" / "cgroup").read_text(errors="surrogateescape").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, place = line.split(":", 2)
        kind = "memory" if "memory" in controllers.split(",") else controllers
        if kind not in FILES:
            continue
        root = GROUPS / kind
        # Inside a container the group's own name is not there: its files are at the root.
        names = [part for part in place.split("/") if part]
        for depth in range(len(names), -1, -1):
            yield from _free_of_group(root.joinpath(*names[:depth]), *FILES[kind])


def _free_of_group(folder: Path, limit: str, used: str, given_back: tuple[str, ...]) -> Iterator[int]:
    try:
        most, now = (folder / limit).read_text().strip(), int((folder / used).read_text())
        if most == "max":
            return
        rows = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        yield int(most) - now + sum(int(rows.get(name, 0)) for name in given_back)
    except (OSError, ValueError):  # not there, or of another kind
        return
