"""What a split's images hold, as one digest: has anything changed since a run began?"""

from __future__ import annotations

import hashlib
import os

from riftcli.data.paths import texts
from riftcli.data.split import Split
from riftcli.errors import DataError

MOST_IMAGES, MOST_BYTES = 10_000, 256 << 20  # that are read for a digest; a second or two


def content_digest(split: Split) -> str:
    """sha256 of every image's size on the disk, and of the bytes of all images, or of as many, evenly spread, as stay within
    MOST_IMAGES and MOST_BYTES. Raises DataError for files that are gone.
    """
    digest, count = hashlib.sha256(), len(split)
    if split.paths is None:
        for i in _spread(count, MOST_IMAGES):
            image = split.read(i)
            digest.update(f"{image.mode} {image.size}\n".encode() + image.tobytes())
        return digest.hexdigest()
    try:
        sizes = [os.stat(path).st_size for path in texts(split.paths)]
        digest.update(" ".join(map(str, sizes)).encode())
        mean = max(1, sum(sizes) // max(1, count))
        for i in _spread(count, min(MOST_IMAGES, max(1, MOST_BYTES // mean))):
            digest.update(split.paths[i].read_bytes())
    except OSError as error:
        raise DataError(f"{error.filename}: image not found ({error.strerror})") from None
    return digest.hexdigest()


def _spread(count: int, most: int) -> list[int]:
    """At most so many of `count` positions, evenly spread."""
    return list(range(count)) if count <= most else [i * count // most for i in range(most)]
