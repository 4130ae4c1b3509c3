"""A folder of weights whose files are replaced together and are known by their digests."""

from __future__ import annotations

import functools
import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from riftcli import files
from riftcli.errors import ModelError, StorageError

MANIFEST = "manifest.json"
TRIES = 3  # a run that trains may replace a file while it is read


def sha256(path: Path) -> str:
    """Digest of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def publishing(folder: Path) -> Iterator[Path]:
    """Write files to the folder that this yields; those of `folder` are replaced by them when the block ends without an error.

    manifest.json names the digests of all. While files are being replaced it names the old ones too, so that a kill at any
    point leaves a folder in which every file is whole. Raises StorageError.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=files.PREFIX, suffix=files.SUFFIX, dir=folder) as name:
        stage = Path(name)
        try:
            yield stage
        except StorageError as error:
            raise StorageError(str(error).replace(name, str(folder))) from error
        written = sorted(path.name for path in stage.iterdir())
        for entry in written:
            files.check_target(folder / entry)
            files.fsync(stage / entry)
        new = {entry: sha256(stage / entry) for entry in written}
        known = _known(folder)
        here = {entry: [sha256(folder / entry)] for entry in written if entry not in known and (folder / entry).is_file()}
        both = {**known, **{entry: [*known.get(entry, here.get(entry, [])), digest] for entry, digest in new.items()}}
        files.write_json(folder / MANIFEST, {"sha256": both}, durable=True)
        for entry in written:
            (stage / entry).replace(folder / entry)
        files.fsync(folder)
        files.write_json(folder / MANIFEST, {"sha256": {**known, **{k: [v] for k, v in new.items()}}}, durable=True)


def _known(folder: Path) -> dict[str, list[str]]:
    """File -> the digests that it may have; empty where there is no manifest, as in folders of other tools and of older runs."""
    path = folder / MANIFEST
    try:
        listed = files.read_json(path).get("sha256")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: damaged ({error}); put it back from a copy") from error
    fits = isinstance(listed, dict) and all(
        Path(name).name == name and isinstance(digests, list) and digests for name, digests in listed.items()
    )
    if not fits:
        raise ModelError(f"{path}: damaged: it does not say which files there are; put it back from a copy")
    return listed  # type: ignore[return-value]


def check_published(folder: Path) -> None:
    """Raise ModelError for a file of weights that is not what was written, or is gone."""
    for attempt in range(TRIES):
        wrong = _first_wrong(folder)
        if wrong is None:
            return
        if attempt + 1 < TRIES:
            continue
        what = "is gone" if not wrong.exists() else "is empty" if not wrong.stat().st_size else "is damaged: not what was written"
        raise ModelError(
            f"{wrong}: {what} (sha256 in {MANIFEST}); put it back from a copy, or train again; where the change was meant, "
            f"delete {MANIFEST}"
        )


def _first_wrong(folder: Path) -> Path | None:
    for name, digests in _known(folder).items():
        path = folder / name
        try:
            status = os.stat(path)
            if _digest(path, status.st_size, status.st_mtime_ns, status.st_ino) not in digests:
                return path
        except OSError:
            return path
    return None


@functools.lru_cache(maxsize=64)
def _digest(path: Path, size: int, time: int, inode: int) -> str:
    """Of a file in one state: a command that reads a folder several times computes it once."""
    return sha256(path)
