"""Decode once: a store of decoded, resized images that ranks, runs and folds share."""

from __future__ import annotations

import functools
import hashlib
import io
import json
import os
import stat
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import PIL
from PIL import Image

from riftcli.console import note_line
from riftcli.data.images import read_image
from riftcli.data.parallel import in_parallel
from riftcli.data.paths import texts
from riftcli.errors import DataError, Problems, StorageError
from riftcli.files import NO_SPACE, locked, replacing, write_bytes, write_text

VERSION = 1  # of the files below; another version is another folder
ROW = np.dtype([("content", "S32"), ("offset", "<i8"), ("height", "<i4"), ("width", "<i4"), ("crc", "<u4")])
SEEN = np.dtype([("state", "S16"), ("content", "S32")])


@dataclass(frozen=True)
class Decoding:
    """How a file becomes the pixels that a transform gets.

    short_side: pixels of the shorter side that the transform resizes to; larger images are resized to it, smaller ones kept.
    draft: let a JPEG decoder shrink first. bit_depth: bits used by 16-bit grey images. resize: by what, as the transform.
    """

    short_side: int
    interpolation: str = "bicubic"
    draft: bool = False
    bit_depth: int | None = None
    resize: Literal["tensor", "pil"] = "pil"

    @property
    def settings(self) -> dict[str, Any]:
        """What stored images depend on."""
        own = asdict(self)
        if self.resize == "pil":  # as stores were named before there was a choice
            del own["resize"]
        return {"version": VERSION, "pillow": PIL.__version__, **own}

    def resized(self, path: Path) -> np.ndarray:
        """One file, decoded and resized as torchvision's Resize(short_side) does, which has nothing to do then: (H, W, 3)."""
        image = read_image(path, self.bit_depth, self.short_side if self.draft else None)
        short, long = sorted(image.size)
        if short <= self.short_side:
            return np.asarray(image)
        if self.resize == "tensor":  # only then do the processes that decode import torch
            from riftcli.data.transforms import shorter_side

            return shorter_side(image, self.short_side, self.interpolation)
        other = int(self.short_side * long / short)
        size = (self.short_side, other) if image.size[0] == short else (other, self.short_side)
        return np.asarray(image.resize(size, Image.Resampling[self.interpolation.upper()]))


class ImageStore:
    """Packs of decoded images in one folder per way of decoding: `<name>.bin` (pixels) and `<name>.npy` (where each lies).

    An image is known by the content of its file. So as not to read every file again, `<name>.seen.npy` says which content a
    file had in which state (path, size, times, inode). A pack is written under another name and published by its index; one
    that is not whole is ignored, and its images are decoded again.
    """

    def __init__(self, cache: str, decoding: Decoding) -> None:
        settings = decoding.settings
        name = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
        self.folder, self.decoding, self.settings = Path(cache).expanduser() / name, decoding, settings

    def reader(self, paths: Sequence[Path], tick: Callable[[int], None] = lambda n: None) -> StoredReader:
        """Images of `paths` from the store; those it lacks are decoded first. Raise DataError for unreadable ones.

        Other processes that ask at the same time wait, and then find them there.
        """
        states = list(file_states(paths))
        found = self._lookup(states)  # a store that is complete may be read-only
        if found is None:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                with locked(self.folder / "lock"):
                    self._complete(dict(zip(states, paths, strict=True)), tick)
                    found = self._lookup(states)
            except OSError as error:
                remedy = "free some space" if error.errno in NO_SPACE else "choose another input.cache"
                raise StorageError(f"{self.folder}: cannot keep decoded images ({error.strerror}); {remedy}") from error
            if found is None:
                raise StorageError(f"{self.folder}: damaged: what was written to it does not come back; delete it and run again")
        else:
            tick(len(paths))
        return StoredReader(paths, [pack for pack, _ in found], np.array([row for _, row in found], dtype=ROW))

    def _lookup(self, states: list[bytes]) -> list[tuple[Path, Any]] | None:
        """Where each image lies, or None when one of them is not there."""
        seen, rows = _seen(self.folder), self._packed()
        found = [next((rows[content] for content in seen.get(state, ()) if content in rows), None) for state in states]
        return None if any(entry is None for entry in found) else found  # type: ignore[return-value]

    def _packed(self) -> dict[bytes, tuple[Path, Any]]:
        found: dict[bytes, tuple[Path, Any]] = {}
        for index in sorted(self.folder.glob("*.npy")):
            pack, rows = index.with_suffix(".bin"), _table(index, ROW)
            if rows is None or not pack.is_file():
                continue
            last = rows[-1]
            if pack.stat().st_size == last["offset"] + 3 * int(last["height"]) * int(last["width"]):
                found |= {row["content"]: (pack, row) for row in rows}
        return found

    def _complete(self, paths: dict[bytes, Path], tick: Callable[[int], None]) -> None:
        """Under the lock: whatever is not known yet is read, and decoded unless the same content is there."""
        for left in self.folder.glob("*.tmp"):
            left.unlink()  # of a process that was killed: whoever holds the lock is the only writer
        seen, packed = _seen(self.folder), self._packed()
        unknown = {state: path for state, path in paths.items() if not any(c in packed for c in seen.get(state, ()))}
        tick(len(paths) - len(unknown))
        if not unknown:
            return  # another process was faster
        lost = sum(state in seen for state in unknown)
        if lost:
            note_line(f"note: {self.folder}: damaged, or a pack of it is gone: {lost} images are decoded anew")
        contents = dict(zip(unknown, in_parallel(_content, list(unknown.values())), strict=True))
        missing = {content: unknown[state] for state, content in contents.items() if content not in packed}
        tick(len(unknown) - len(missing))
        name = hashlib.sha256(b"".join(unknown)).hexdigest()[:16]
        if missing:
            self._add(name, missing, tick)
        self._publish(f"{name}.seen", np.array(list(contents.items()), dtype=SEEN))
        write_text(self.folder / "settings.json", json.dumps(self.settings, indent=1))

    def _add(self, name: str, missing: dict[bytes, Path], tick: Callable[[int], None]) -> None:
        """Decode into a new pack; nothing is left behind when that fails."""
        rows, offset, problems = [], 0, Problems()
        images = in_parallel(functools.partial(_decoded, self.decoding), list(missing.values()))
        with replacing(self.folder / f"{name}.bin", durable=True) as partial, partial.open("wb") as file:
            for content, image in zip(missing, images, strict=True):
                if isinstance(image, str):
                    problems.add(image)
                else:
                    file.write(image.data)
                    height, width, _ = image.shape
                    rows.append((content, offset, height, width, zlib.crc32(image.data)))
                    offset += image.nbytes
                tick(1)
            problems.raise_if_any()
        self._publish(name, np.array(rows, dtype=ROW))

    def _publish(self, name: str, table: np.ndarray) -> None:
        content = io.BytesIO()
        np.save(content, table)
        write_bytes(self.folder / f"{name}.npy", content.getvalue(), durable=True)


class StoredReader:
    """Reads image i out of the packs, and checks it; picklable, for data workers."""

    def __init__(self, paths: Sequence[Path], packs: list[Path], rows: np.ndarray) -> None:
        self.paths, self.packs, self.rows = paths, packs, rows
        self._open: dict[Path, np.ndarray] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}  # every process maps the file itself

    def __call__(self, i: int) -> Image.Image:  # noqa: D102
        return Image.fromarray(self.pixels(i))

    def pixels(self, i: int) -> np.ndarray:
        """uint8 (H, W, 3), read-only; raise DataError for one that is not what was written."""
        pack, row = self.packs[i], self.rows[i]
        if pack not in self._open:
            self._open[pack] = np.memmap(pack, mode="r")
        height, width, start = int(row["height"]), int(row["width"]), int(row["offset"])
        pixels = self._open[pack][start : start + 3 * height * width]
        if zlib.crc32(pixels.data) != row["crc"]:
            raise DataError(f"{pack}: damaged (the pixels of {self.paths[i]}); delete {pack.parent} and run again")
        return pixels.reshape(height, width, 3)


def _decoded(decoding: Decoding, path: Path) -> np.ndarray | str:
    """(H, W, 3) uint8, or what is wrong with the file: an error must not end the others."""
    try:
        return decoding.resized(path)
    except DataError as error:
        return str(error)


def _content(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest().encode()


def file_state(path: Path) -> bytes:
    """What changes when a file is replaced, even by one of the same size and date; raise DataError when it is gone."""
    return next(file_states([path]))


def file_states(paths: Iterable[Path], missing: bytes | None = None) -> Iterator[bytes]:
    """The same of many files; where a folder really is, is looked up once. missing: what a file that is not there has, in place
    of the DataError.
    """
    folders: dict[str, str] = {}
    kind = type(Path()).__name__  # as stores were written before: the name of what is, and where
    for path in texts(paths):
        try:
            status = os.lstat(path)
            if stat.S_ISLNK(status.st_mode):
                status, real = os.stat(path), os.path.realpath(path)
            else:
                folder, name = os.path.split(path)
                if folder not in folders:
                    folders[folder] = os.path.realpath(folder)
                real = os.path.join(folders[folder], name)
        except OSError as error:
            if missing is not None:
                yield missing
                continue
            raise DataError(f"{path}: image not found ({error.strerror})") from None
        facts = f"({kind}({real!r}), {status.st_size}, {status.st_mtime_ns}, {status.st_ctime_ns}, {status.st_ino})"
        yield hashlib.blake2b(facts.encode("utf-8", "surrogateescape"), digest_size=8).hexdigest().encode()


def stored_files(cache: str) -> set[bytes]:
    """States of files that were decoded into any store below `cache`, so that they are known to be readable."""
    return {state for folder in Path(cache).expanduser().glob("*/") for state in _seen(folder)}


def _seen(folder: Path) -> dict[bytes, list[bytes]]:
    """State of a file -> its content; several where a table is damaged and another was written since."""
    found: dict[bytes, list[bytes]] = {}
    for path in sorted(folder.glob("*.seen.npy")):
        table = _table(path, SEEN)
        for row in () if table is None else table:
            found.setdefault(row["state"], []).append(row["content"])
    return found


def _table(path: Path, kind: np.dtype) -> np.ndarray | None:
    """A table, or None for one that is empty, damaged or of another kind."""
    try:
        table = np.load(path, allow_pickle=False)
    except Exception:  # a damaged header is read as Python by numpy, and fails in as many ways
        return None
    return table if isinstance(table, np.ndarray) and table.dtype == kind and len(table) else None


def unreadable(
    paths: list[Path], bit_depth: int | None, workers: int | None = None, tick: Callable[[int], None] = lambda n: None
) -> dict[int, str]:
    """Position -> what is wrong, for every file that does not decode completely."""
    problems = {}
    for i, problem in enumerate(in_parallel(functools.partial(_problem, bit_depth), paths, workers)):
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
