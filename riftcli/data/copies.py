"""The same image file in two splits under another name: found by size, then by content, without decoding anything."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from pathlib import Path

from riftcli.data.paths import texts
from riftcli.data.split import Split

MOST = 200_000  # files; of more, looking at all sizes takes too long before every training
BLOCK = 1 << 14  # bytes at the beginning and in the middle, which tell most files of one size apart


def copies_between(splits: dict[str, Split]) -> dict[tuple[str, str], list[str]]:
    """(first, second) -> ids of the second split whose file has the bytes of a file of the first, other than as the same file.

    Only files of a size that occurs in two splits are opened, and only those that begin alike are read to their end. (Files
    without compression have one size and may begin with the same header, so a block in the middle is looked at as well.)
    """
    by_size: dict[int, list[tuple[str, int]]] = defaultdict(list)
    for name, split in splits.items():
        for i, path in enumerate(texts(split.paths or [])):
            try:
                by_size[os.stat(path).st_size].append((name, i))
            except OSError:
                continue  # gone since it was listed: reading it will say so
    found: dict[tuple[str, str], list[str]] = defaultdict(list)
    for same in by_size.values():
        for alike in _groups(splits, same, whole=False):
            for equal in _groups(splits, alike, whole=True):
                _note(splits, equal, found)
    return {pair: ids for pair, ids in found.items() if ids}


def _groups(splits: dict[str, Split], places: list[tuple[str, int]], whole: bool) -> list[list[tuple[str, int]]]:
    """Places in two or more splits whose files agree in all bytes, or in two blocks of them."""
    if len({name for name, _ in places}) < 2:
        return []
    by_content: dict[bytes, list[tuple[str, int]]] = defaultdict(list)
    for name, i in places:
        paths = splits[name].paths
        assert paths is not None
        by_content[_digest(paths[i], whole)].append((name, i))
    return [group for group in by_content.values() if len({name for name, _ in group}) > 1]


def _digest(path: Path, whole: bool) -> bytes:
    try:
        with path.open("rb") as file:
            if whole:
                return hashlib.file_digest(file, hashlib.blake2b).digest()
            first = file.read(BLOCK)
            file.seek(path.stat().st_size // 2)
            return hashlib.blake2b(first + file.read(BLOCK)).digest()
    except OSError:
        return repr(path).encode()  # like no other


def _note(splits: dict[str, Split], equal: list[tuple[str, int]], found: dict[tuple[str, str], list[str]]) -> None:
    ids: dict[str, list[str]] = {name: [] for name in splits}
    for name, i in equal:
        ids[name].append(splits[name].ids[i])
    present = [name for name in splits if ids[name]]
    for k, first in enumerate(present):
        same = set(ids[first])
        for second in present[k + 1 :]:
            found[first, second] += [own for own in ids[second] if own not in same]
