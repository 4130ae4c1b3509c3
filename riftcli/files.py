"""Files written whole or not at all, where they were meant to go; and files read that are no larger than they should be."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from riftcli.errors import StorageError

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
MEGABYTE = 1_000_000
MOST_TEXT = 256 * MEGABYTE  # bytes of a JSON or YAML file or a table of a run; larger ones are not what they seem to be
PREFIX, SUFFIX = ".rift-", ".tmp"  # of what is being written: never the name of a file that somebody looks for

_UMASK = os.umask(0)
os.umask(_UMASK)


def check_target(path: Path) -> None:
    """Raise StorageError where a file is to be written and something else is: a link, a device, a pipe or a folder (F5)."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise StorageError(f"{path}: cannot be written ({error.strerror})") from error
    if not stat.S_ISREG(mode):
        raise StorageError(f"{path}: is {_kind(mode)}, not a regular file, and is left alone; name another file")


def _kind(mode: int) -> str:
    tests = {"a link": stat.S_ISLNK, "a folder": stat.S_ISDIR, "a named pipe": stat.S_ISFIFO, "a socket": stat.S_ISSOCK}
    return next((name for name, test in tests.items() if test(mode)), "a device")


def unwritable(path: Path, error: BaseException, size: int | None = None) -> StorageError:
    """What to say of a file that could not be written. size: bytes that it needs, where that is known."""
    reason = getattr(error, "strerror", None) or str(error)
    needs = "" if size is None else f"; it needs {megabytes(size)}"
    full = getattr(error, "errno", None) in NO_SPACE or "os error 27" in reason or "os error 28" in reason
    return StorageError(f"{path}: cannot be written ({reason}){needs}{'; free some space' if full else ''}")


def megabytes(size: int) -> str:
    """Bytes as people read them."""
    return f"{size / 1e6:.0f} MB" if size >= 1e6 else f"{size / 1e3:.0f} kB" if size >= 10_000 else f"{size} bytes"


@contextmanager
def replacing(path: Path, size: int | None = None, durable: bool = False) -> Iterator[Path]:
    """Write to the path that this yields; `path` is replaced by it in one step when the block ends without an error.

    The name in between is new and unpredictable, in the same folder. Raises StorageError for a target that is no regular file
    and for a disk that is full. size: bytes that will be needed; durable: flushed to the disk before it is put in place.
    """
    check_target(path)
    try:
        handle, name = tempfile.mkstemp(prefix=PREFIX, suffix=SUFFIX, dir=path.parent)
    except OSError as error:
        raise unwritable(path, error, size) from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_UMASK)
        if durable:
            fsync(temporary)
        temporary.replace(path)
        if durable:
            fsync(path.parent)
    except OSError as error:
        if error.errno in NO_SPACE or error.filename in (None, name):
            raise unwritable(path, error, size) from error
        raise
    except Exception as error:
        if type(error).__name__ == "SafetensorError":  # how that library says that it could not write
            raise unwritable(path, error, size) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def writing(path: Path) -> Iterator[IO[str]]:
    """A text file (UTF-8, line ends as given) that is put in place when the block ends without an error."""
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        yield file
        file.flush()


def write_text(path: Path, text: str, durable: bool = False) -> None:
    """Replace a text file in one step."""
    write_bytes(path, text.encode("utf-8", "backslashreplace"), durable)


def write_bytes(path: Path, content: bytes, durable: bool = False) -> None:
    """Replace a file in one step."""
    with replacing(path, len(content), durable) as temporary:
        temporary.write_bytes(content)


def write_json(path: Path, value: Any, durable: bool = False) -> None:
    """Replace a JSON file in one step; NaN is refused (a report says null and why)."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n", durable)


def open_append(path: Path) -> IO[str]:
    """A text file to append to; raise StorageError where that is no regular file."""
    return os.fdopen(
        _open_regular(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT), "a", encoding="utf-8", errors="backslashreplace"
    )


def open_lock(path: Path) -> IO[bytes]:
    """A file to lock, made where there is none; raise StorageError where that is no regular file."""
    return os.fdopen(_open_regular(path, os.O_RDWR | os.O_CREAT), "r+b")


def _open_regular(path: Path, flags: int) -> int:
    check_target(path)
    try:  # O_NONBLOCK: a pipe that has just come there must not hold us
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise unwritable(path, error) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise StorageError(f"{path}: not a regular file, and left alone")
    return descriptor


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """One process at a time; the lock goes with the process, whatever ends it."""
    with open_lock(path) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def fsync(path: Path) -> None:
    """Flush a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_partial(path: Path) -> bool:
    """Whether it is something that is being written, or that a killed process was writing."""
    return path.name.startswith(PREFIX) and path.name.endswith(SUFFIX)


def clear_partial(folder: Path) -> None:
    """Delete what a killed process was writing. Only for who holds the folder's lock."""
    for left in [*folder.glob(f"{PREFIX}*{SUFFIX}"), *folder.glob(f"*/{PREFIX}*{SUFFIX}")]:
        if left.is_dir() and not left.is_symlink():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


def check_no_links(folder: Path) -> None:
    """Raise StorageError for a folder of ours that has links in it: nothing is ever written through them.

    A run folder that came from elsewhere could have them point anywhere.
    """
    for place, folders, names in os.walk(folder):
        for name in (*folders, *names):
            path = Path(place) / name
            if path.is_symlink():
                raise StorageError(
                    f"{path}: is a link, and nothing is written through it; put the file itself there, or delete it"
                )


# ---- reading


def check_readable(path: Path, most: int = MOST_TEXT) -> None:
    """Raise ValueError for what is no regular file (a pipe would never end) or has more than `most` bytes; OSError."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(f"{_kind(status.st_mode)}, not a regular file")
    if status.st_size > most:
        raise ValueError(f"{megabytes(status.st_size)}, more than the {megabytes(most)} that such a file may have")


def read_text(path: Path, most: int = MOST_TEXT, encoding: str = "utf-8") -> str:
    """A text; raise ValueError for what is not, is no regular file, or is larger than `most` bytes, and OSError."""
    check_readable(path, most)
    return path.read_text(encoding=encoding)


def read_json(path: Path, most: int = MOST_TEXT) -> dict[str, Any]:
    """A JSON object; raise ValueError for anything else, and OSError."""
    return parse_json(read_text(path, most))


def parse_json(text: str) -> dict[str, Any]:
    """A JSON object; raise ValueError for anything else, NaN and what is nested too deeply."""
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError(f"expected an object, found {type(value).__name__}")
    return value


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
