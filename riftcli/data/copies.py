"""The same image file in two splits under another name: found by size, then by content, without decoding anything."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from pathlib import Path

from riftcli.data.split import Split

MOST = 200_000  # files; of more, looking at all sizes takes too long before every training
HEAD = 1 << 14  # bytes that tell most files of one size apart


def copies_between(splits: dict[str, Split]) -> dict[tuple[str, str], list[str]]:
    """(first, second) -> ids of the second split whose file has the bytes of a file of the first, other than as the same file.

    Only files of a size that occurs in two splits are opened, and only those that begin alike are read to their end.
    """
    by_size: dict[int, list[tuple[str, int]]] = defaultdict(list)
    for name, split in splits.items():
        for i, path in enumerate(split.paths or []):
            try:
                by_size[path.stat().st_size].append((name, i))
            except OSError:
                continue  # gone since it was listed: reading it will say so
    found: dict[tuple[str, str], list[str]] = defaultdict(list)
    for same in by_size.values():
        for alike in _groups(splits, same, HEAD):
            for equal in _groups(splits, alike, None):
                _note(splits, equal, found)
    return dict(found)


def _groups(splits: dict[str, Split], places: list[tuple[str, int]], count: int | None) -> list[list[tuple[str, int]]]:
    """Places in two or more splits whose files agree in their first `count` bytes, or in all."""
    if len({name for name, _ in places}) < 2:
        return []
    by_content: dict[bytes, list[tuple[str, int]]] = defaultdict(list)
    for name, i in places:
        paths = splits[name].paths
        assert paths is not None
        by_content[_digest(paths[i], count)].append((name, i))
    return [group for group in by_content.values() if len({name for name, _ in group}) > 1]


def _digest(path: Path, count: int | None) -> bytes:
    try:
        with path.open("rb") as file:
            if count is not None:
                return hashlib.blake2b(file.read(count)).digest()
            return hashlib.file_digest(file, hashlib.blake2b).digest()
    except OSError:
        return repr(path).encode()  # like no other


def _note(splits: dict[str, Split], equal: list[tuple[str, int]], found: dict[tuple[str, str], list[str]]) -> None:
    names = list(splits)
    for second, i in equal:
        for first in names[: names.index(second)]:
            other = [splits[first].ids[k] for name, k in equal if name == first]
            if other and splits[second].ids[i] not in other:
                found[first, second].append(splits[second].ids[i])
