"""Decode once: a store of decoded, resized images that ranks, runs and folds share."""

from __future__ import annotations

import fcntl
import functools
import hashlib
import json
import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from PIL import Image

from riftcli.errors import DataError, Problems, StorageError
from riftcli.images import read_image
from riftcli.parallel import in_parallel

VERSION = 1  # of the files below; another version is another folder
ROW = np.dtype([("key", "S16"), ("offset", "<i8"), ("height", "<i4"), ("width", "<i4"), ("crc", "<u4")])


@dataclass(frozen=True)
class Decoding:
    """How a file becomes the pixels that a transform gets.

    short_side: pixels of the shorter side that the transform resizes to; larger images are resized to it, smaller ones kept.
    draft: let a JPEG decoder shrink first. bit_depth: bits used by 16-bit grey images.
    """

    short_side: int
    interpolation: str = "bicubic"
    draft: bool = False
    bit_depth: int | None = None

    def resized(self, path: Path) -> Image.Image:
        """One file, decoded and resized as torchvision's Resize(short_side) does, which then has nothing left to do."""
        image = read_image(path, self.bit_depth, self.short_side if self.draft else None)
        short, long = sorted(image.size)
        if short <= self.short_side:
            return image
        other = int(self.short_side * long / short)
        size = (self.short_side, other) if image.size[0] == short else (other, self.short_side)
        return image.resize(size, Image.Resampling[self.interpolation.upper()])


class ImageStore:
    """Packs of decoded images in one folder per way of decoding: `<name>.bin` (pixels) and `<name>.npy` (where each lies).

    An image is known by its path, size and time of change, so that a changed file is a new one. A pack is written under
    another name and published by its index; a pack that is not whole is ignored and its images are decoded again.
    """

    def __init__(self, cache: str, decoding: Decoding) -> None:
        settings = {"version": VERSION, "pillow": PIL.__version__, **asdict(decoding)}
        name = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
        self.folder, self.decoding, self.settings = Path(cache).expanduser() / name, decoding, settings

    def reader(self, paths: list[Path], tick: Callable[[int], None] = lambda n: None) -> StoredReader:
        """Images of `paths` from the store; those it lacks are decoded first. Raise DataError for unreadable ones.

        Other processes that ask at the same time wait, and then find them there.
        """
        keys = [_key(path) for path in paths]
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with _locked(self.folder / "lock"):
                known = self._known()
                missing = list({key: path for key, path in zip(keys, paths, strict=True) if key not in known}.items())
                tick(len(paths) - len(missing))
                if missing:
                    self._add(missing, tick)
                    known = self._known()
        except OSError as error:
            raise StorageError(f"{self.folder}: cannot keep decoded images ({error.strerror}); free some space") from error
        rows = [known[key] for key in keys]
        return StoredReader(paths, [pack for pack, _ in rows], np.array([row for _, row in rows], dtype=ROW))

    def _known(self) -> dict[bytes, tuple[Path, Any]]:
        found: dict[bytes, tuple[Path, Any]] = {}
        for index in sorted(self.folder.glob("*.npy")):
            pack = index.with_suffix(".bin")
            try:
                rows = np.load(index, allow_pickle=False)
                last = rows[-1]
                whole = rows.dtype == ROW and pack.stat().st_size == last["offset"] + 3 * int(last["height"]) * int(last["width"])
            except (OSError, ValueError, EOFError, IndexError):
                continue
            if whole:
                found |= {row["key"]: (pack, row) for row in rows}
        return found

    def _add(self, missing: list[tuple[bytes, Path]], tick: Callable[[int], None]) -> None:
        """Decode into a new pack; nothing is left behind when that fails."""
        name = hashlib.sha256(b"".join(key for key, _ in missing)).hexdigest()[:16]
        pack, index = self.folder / f"{name}.bin", self.folder / f"{name}.npy"
        partial, rows, offset, problems = self.folder / f"{name}.bin.tmp", [], 0, Problems()
        images = in_parallel(functools.partial(_decoded, self.decoding), [path for _, path in missing])
        try:
            with partial.open("wb") as file:
                for (key, _), image in zip(missing, images, strict=True):
                    if isinstance(image, str):
                        problems.add(image)
                    else:
                        file.write(image.data)
                        height, width, _ = image.shape
                        rows.append((key, offset, height, width, zlib.crc32(image.data)))
                        offset += image.nbytes
                    tick(1)
                problems.raise_if_any()
                file.flush()
                os.fsync(file.fileno())
            partial.replace(pack)
            with index.with_suffix(".npy.tmp").open("wb") as file:
                np.save(file, np.array(rows, dtype=ROW))
                file.flush()
                os.fsync(file.fileno())
            index.with_suffix(".npy.tmp").replace(index)
            (self.folder / "settings.json").write_text(json.dumps(self.settings, indent=1))
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


class StoredReader:
    """Reads image i out of the packs, and checks it; picklable, for data workers."""

    def __init__(self, paths: list[Path], packs: list[Path], rows: np.ndarray) -> None:
        self.paths, self.packs, self.rows = paths, packs, rows
        self._open: dict[Path, np.ndarray] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}  # every process maps the file itself

    def __call__(self, i: int) -> Image.Image:  # noqa: D102
        pack, row = self.packs[i], self.rows[i]
        if pack not in self._open:
            self._open[pack] = np.memmap(pack, mode="r")
        height, width, start = int(row["height"]), int(row["width"]), int(row["offset"])
        pixels = self._open[pack][start : start + 3 * height * width]
        if zlib.crc32(pixels.data) != row["crc"]:
            raise DataError(f"{pack}: damaged (the pixels of {self.paths[i]}); delete {pack.parent} and run again")
        return Image.fromarray(pixels.reshape(height, width, 3))


def _decoded(decoding: Decoding, path: Path) -> np.ndarray | str:
    """(H, W, 3) uint8, or what is wrong with the file: an error must not end the others."""
    try:
        return np.asarray(decoding.resized(path))
    except DataError as error:
        return str(error)


def _key(path: Path) -> bytes:
    status = path.stat()
    text = f"{path.resolve()}\n{status.st_size}\n{status.st_mtime_ns}"
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest().encode()


def unreadable(paths: list[Path], bit_depth: int | None, tick: Callable[[int], None] = lambda n: None) -> dict[int, str]:
    """Position -> what is wrong, for every file that does not decode completely."""
    problems = {}
    for i, problem in enumerate(in_parallel(functools.partial(_problem, bit_depth), paths)):
        if problem:
            problems[i] = problem
        tick(1)
    return problems


def _problem(bit_depth: int | None, path: Path) -> str | None:
    try:
        read_image(path, bit_depth)
    except DataError as error:
        return str(error)
    return None


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One process at a time; the lock goes with the process, whatever ends it."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
