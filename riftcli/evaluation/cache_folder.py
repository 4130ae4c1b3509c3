"""The user's cache of features: where it is, what lies in it, and how it is kept small. No torch here."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from riftcli.files import is_partial

OLD = 3600  # seconds after which what is half written is taken for a leftover
MOST = 10 * 10**9  # bytes of the user's cache; what was not used for longest goes first
SUFFIX = ".safetensors"


@dataclass(frozen=True)
class Entry:
    """A table of features. used: seconds since the epoch, when it was last read or written."""

    path: Path
    size: int
    used: float


def user_folder() -> Path | None:
    """Where features are kept unless a recipe says otherwise: RIFTCLI_CACHE, else riftcli/ in the user's folder for caches; None
    for a user without a home.
    """
    own, base = os.environ.get("RIFTCLI_CACHE"), os.environ.get("XDG_CACHE_HOME")
    try:
        return Path(own).expanduser() if own else Path(base or Path.home() / ".cache") / "riftcli"
    except RuntimeError:
        return None


def entries(folder: Path) -> list[Entry]:
    """What lies there, what was not used for longest first; also what a killed process was writing. Raises OSError."""
    found = []
    paths = [path for path in folder.iterdir() if path.suffix == SUFFIX or is_partial(path)] if folder.exists() else []
    for path in paths:
        with suppress(OSError):  # another process has just deleted it
            status = path.stat()
            if is_partial(path) and time.time() - status.st_mtime < OLD:
                continue
            found.append(Entry(path, status.st_size, max(status.st_atime, status.st_mtime)))
    return sorted(found, key=lambda entry: (entry.used, entry.path.name))


def remove(entry: Entry) -> None:
    """Delete a table; one that is in use is computed once more by whoever asks next."""
    for path in (entry.path, entry.path.with_suffix(".sha256")):
        path.unlink(missing_ok=True)


def prune(folder: Path, most: int) -> None:
    """Delete what was not used for longest, until no more than `most` bytes are left."""
    there = entries(folder)
    size = sum(entry.size for entry in there)
    for entry in there:
        if size <= most:
            return
        with suppress(OSError):  # of somebody else: the next one goes
            remove(entry)
            size -= entry.size


def touch(path: Path) -> None:
    """Note that a table was used, also on a file system that does not."""
    with suppress(OSError):  # a cache that others own may be read all the same
        os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))
