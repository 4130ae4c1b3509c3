"""Decoded images in memory that all processes of a machine share: what was decoded in one epoch is not decoded in the next."""

from __future__ import annotations

import fcntl
import os
import struct
import uuid
import weakref
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from riftcli import dist
from riftcli.data.memory import free_memory
from riftcli.data.split import read_pixels

ENTRY = struct.Struct("<qii")  # of the table: place, height, width, place 0 for none; before the pixels: number, height, width
LOOK = 16 << 20  # bytes that a process keeps or reads from one look at the free memory to the next


class KeptImages:
    """Images (H, W, 3) of uint8 by their number 0 .. count - 1, up to `most` bytes and while `reserve` bytes are free.

    Two files in memory (Linux: memfd), which go with the last process that has them open: pixels, one image behind the other, and
    a table of where each lies. The kernel appends what several processes write in turn, so that one that is killed leaves no lock
    behind; an image is entered in the table when it is there, and is checked against its entry when it is read. Where there is no
    memory for it, nothing more is kept, and that is all; when half of the reserve is gone, what was kept is given back.

    needed: bytes that all images would take, where `most` was too little; room: whether it was not. Both from `release` on.
    """

    needed: int | None = None
    room = False

    def __init__(self, count: int, most: int, reserve: int) -> None:
        """Raise OSError where the system has no such files."""
        if not hasattr(os, "memfd_create"):
            raise OSError("no files in memory on this system")
        self.count, self.most, self.reserve = count, most, reserve
        names = [f"rift-{kind}-{uuid.uuid4().hex}" for kind in ("pixels", "places")]
        own: list[int] = []
        weakref.finalize(self, _close, own)
        for name in names:
            own.append(os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING))
        os.pwrite(own[0], bytes(1), 0)  # no image is at place 0
        os.ftruncate(own[1], count * ENTRY.size)
        self.files = [(f"/proc/{os.getpid()}/fd/{k}", f"/memfd:{name} (deleted)") for k, name in zip(own, names, strict=True)]
        self._of_process()

    @classmethod
    def of_machine(cls, count: int, most: int, reserve: int) -> KeptImages | None:
        """Those of the first rank of this machine; None without such files, or where none are wanted. Collective: machines may
        have another `most`.
        """
        try:
            own = cls(count, most, reserve) if most else None
        except OSError:
            own = None
        ranks = dist.gather_objects(own)
        ranks[dist.rank()] = own
        return next((kept for kept in ranks if kept is not None and kept.reachable), None)

    def __getstate__(self) -> dict[str, Any]:
        """For another process, which opens the files itself."""
        return {key: self.__dict__[key] for key in ("count", "most", "reserve", "files")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._of_process()

    def _of_process(self) -> None:
        self._files: list[int] = []
        self._process, self._unseen, self._full = 0, LOOK, False

    def _opened(self) -> list[int]:
        """The files, opened by this process: one that was forked would share its position in them with its parent. None of them
        where they are out of reach: on another machine, or of a process that has ended.
        """
        if self._process != os.getpid():
            self._of_process()
            self._process = os.getpid()
            opened: list[int] = []
            weakref.finalize(self, _close, opened)
            with suppress(OSError):
                if all(os.readlink(path) == name for path, name in self.files):
                    for (path, _), how in zip(self.files, (os.O_APPEND, 0), strict=True):
                        opened.append(os.open(path, os.O_RDWR | how))
                    self._files = opened
        return self._files

    @property
    def reachable(self) -> bool:
        """True where this process can open the files, which may be another's."""
        return bool(self._opened())

    def get(self, i: int) -> torch.Tensor | None:
        """Image i as uint8 (3, H, W), a view of (H, W, 3) as a decoder of JPEGs returns it; None for one that is not kept."""
        if not self.reachable:
            return None
        pixels, places = self._opened()
        place, height, width = ENTRY.unpack(os.pread(places, ENTRY.size, i * ENTRY.size))
        if not place:
            return None
        image, before = torch.empty((height, width, 3), dtype=torch.uint8), bytearray(ENTRY.size)
        whole = os.preadv(pixels, [before, image.numpy().data], place) == ENTRY.size + image.nbytes
        self._look(image.nbytes)
        return image.permute(2, 0, 1) if whole and ENTRY.unpack(before) == (i, height, width) else None

    def put(self, i: int, image: np.ndarray) -> None:
        """Keep an image (H, W, 3) of uint8, unless there is no more room."""
        if self._full or not self.reachable:
            return
        pixels, places = self._opened()
        height, width = image.shape[:2]
        parts: list[Any] = [ENTRY.pack(i, height, width), np.ascontiguousarray(image).data]
        size = ENTRY.size + image.nbytes
        self._look(size)
        try:
            self._full = self._full or os.fstat(pixels).st_size + size > self.most
            if not self._full:
                self._full = os.writev(pixels, parts) < size
            if not self._full:
                place = os.lseek(pixels, 0, os.SEEK_CUR) - size
                os.pwrite(places, ENTRY.pack(place, height, width), i * ENTRY.size)
        except OSError:
            self._full = True

    def _look(self, size: int) -> None:
        """Look from time to time whether memory is short."""
        self._unseen += size
        if self._unseen < LOOK:
            return
        self._unseen, free = 0, free_memory()
        if free is not None and free < self.reserve:
            self._full = True
            if free < self.reserve // 2:
                self._empty()

    def _empty(self) -> None:
        """Give the memory back; nothing is kept from here on, by none of the processes. What another one reads meanwhile ends too
        early, and is decoded.
        """
        self._full = True
        with suppress(OSError):
            pixels = self._opened()[0]
            # First, so that no other image takes the place of one that is being read.
            fcntl.fcntl(pixels, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW)
            os.ftruncate(pixels, 1)

    def kept(self) -> tuple[int, int]:
        """(images, bytes) that are kept."""
        if not self.reachable:
            return 0, 0
        pixels, places = self._opened()
        size = os.fstat(pixels).st_size
        table = ENTRY.iter_unpack(os.pread(places, self.count * ENTRY.size, 0))
        return sum(0 < place < size for place, _, _ in table), size

    def release(self) -> None:
        """In the process that made it: give the memory back, and note what it came to. The others have nothing to do."""
        if not self.files[0][0].startswith(f"/proc/{os.getpid()}/"):
            return
        images, size = self.kept()
        if images:
            free, whole = free_memory(), size // images * self.count
            short = free is not None and free < self.reserve
            self.room = images == self.count or not (short or whole > self.most)
            self.needed = None if self.room or short else whole
        self._empty()


def _close(numbers: list[int]) -> None:
    for number in numbers:
        os.close(number)


@dataclass(frozen=True)
class KeptPart:
    """The images of one split, which are those from `first` on."""

    images: KeptImages
    first: int = 0

    def get(self, i: int) -> torch.Tensor | None:
        """Image i of the split, as of all."""
        return self.images.get(self.first + i)

    def put(self, i: int, image: np.ndarray) -> None:
        """Keep image i of the split."""
        self.images.put(self.first + i, image)


class KeepingReader:
    """Another reader of images, whose decoded pixels are kept, before anything is done to them; picklable, for data workers."""

    def __init__(self, read: Callable[[int], Image.Image], kept: KeptPart) -> None:
        self.read, self.kept = read, kept

    def __call__(self, i: int) -> Image.Image:  # noqa: D102
        return self.read(i)

    def pixels(self, i: int) -> Any:
        """An image, an array (H, W, 3), or a tensor (3, H, W) of uint8."""
        known = self.kept.get(i)
        if known is not None:
            return known
        found = read_pixels(self.read, i)
        image = np.asarray(found.permute(1, 2, 0) if isinstance(found, torch.Tensor) else found)
        if image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3:
            self.kept.put(i, image)
        return found
