"""What one image file is: readable or not, its mode and size, its content hash and its perceptual hash. Light to import."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from riftcli.data.dicom import SUFFIXES
from riftcli.data.images import open_image, read_image
from riftcli.errors import DataError

FLAT = 2.0  # standard deviation of grey levels below which a picture has no structure to compare
TINY = 32  # pixels of the shorter side below which all pictures look alike
MOST = 60_000  # images; the pairs of more take minutes
MANY_PAIRS = 100_000


@dataclass(frozen=True)
class Inspected:
    """mode, width and height as stored, before the conversion to RGB; content: digest of the file or of the pixels;
    perceptual: 64-bit hash, None for a flat or tiny picture; problem: why it cannot be read.
    """

    problem: str | None
    mode: str = ""
    width: int = 0
    height: int = 0
    content: str = ""
    perceptual: int | None = None


def inspect_file(bit_depth: int | None, path: Path) -> Inspected:
    """Decode a file completely and describe it; never raises for a bad one."""
    try:
        rgb = read_image(path, bit_depth)
        if path.suffix.lower() in SUFFIXES:
            mode, (width, height) = "DICOM", rgb.size
        else:
            with open_image(path) as image:
                mode, (width, height) = image.mode, image.size
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
    except DataError as error:
        return Inspected(str(error))
    return Inspected(None, mode, width, height, content, perceptual_hash(rgb))


def inspect_pixels(image: Image.Image) -> Inspected:
    """Describe an image that has no file."""
    content = hashlib.sha256(np.asarray(image).tobytes()).hexdigest()
    return Inspected(None, image.mode, image.width, image.height, content, perceptual_hash(image))


def perceptual_hash(image: Image.Image) -> int | None:
    """64 bits of the coarse structure (pHash): signs of the 8 x 8 lowest frequencies of a 32 x 32 grey copy, against their
    median. Resizing, compression and small changes of brightness move few bits.
    """
    from scipy.fft import dctn

    if min(image.size) < TINY:
        return None
    grey = np.asarray(image.convert("L").resize((32, 32), Image.Resampling.BILINEAR), dtype=np.float64)
    if grey.std() < FLAT:
        return None
    low = dctn(grey, norm="ortho")[:8, :8].ravel()
    bits = low > np.median(low[1:])  # the first is the mean brightness
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def near_pairs(hashes: list[int | None], distance: int) -> tuple[list[tuple[int, int]], bool]:
    """(positions i < j whose hashes differ in at most `distance` of 64 bits, the most alike first; whether that is all).

    The search ends after MANY_PAIRS: a folder of one picture a thousand times would fill the memory.
    """
    known = np.array([i for i, value in enumerate(hashes) if value is not None], dtype=np.int64)
    values = np.array([value for value in hashes if value is not None], dtype=np.uint64)
    found: list[np.ndarray] = []
    count, complete = 0, True
    rows = max(1, 4_000_000 // max(1, len(values)))  # a block of distances at a time
    for start in range(0, len(values), rows):
        bits = np.bitwise_count(values[start : start + rows, None] ^ values[None, start:])
        first, second = np.nonzero(bits <= distance)
        later = np.flatnonzero(second > first)[: MANY_PAIRS - count]
        first, second = first[later], second[later]
        found.append(np.stack([bits[first, second], known[first + start], known[second + start]], 1).astype(np.int64))
        count += len(later)
        if count >= MANY_PAIRS:
            complete = False
            break
    pairs = np.concatenate(found) if found else np.zeros((0, 3), dtype=np.int64)
    order = np.lexsort((pairs[:, 2], pairs[:, 1], pairs[:, 0]))
    return [(int(i), int(j)) for _, i, j in pairs[order]], complete
