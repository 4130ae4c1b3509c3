"""The files of a large split, each known by its name below one folder: a name takes a tenth of the memory of a path."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import overload


class PathsBelow(Sequence[Path]):
    """root / name for every name, made when it is asked for. names: relative, with / between folders, as they are on disk. links:
    those of them that were links when their folders were listed.
    """

    def __init__(self, root: Path, names: list[str], links: frozenset[str] = frozenset()) -> None:
        self.root, self.names, self.links = root, names, links
        self._prefix = "" if root == Path() else os.path.join(root, "")  # ./a is a, as for a path

    def __len__(self) -> int:
        return len(self.names)

    @overload
    def __getitem__(self, i: int) -> Path: ...
    @overload
    def __getitem__(self, i: slice) -> PathsBelow: ...
    def __getitem__(self, i: int | slice) -> Path | PathsBelow:
        if isinstance(i, slice):
            return PathsBelow(self.root, self.names[i], self.links)
        return Path(self._prefix + self.names[i])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def take(self, indices: Iterable[int]) -> PathsBelow:
        """Those at `indices`, in that order."""
        return PathsBelow(self.root, [self.names[i] for i in indices], self.links)

    def text(self, name: str) -> str:
        """The path of one of the names, as text."""
        return self._prefix + name

    def texts(self) -> Iterator[str]:
        """The paths as texts."""
        prefix = self._prefix
        return (prefix + name for name in self.names)


def take(paths: Sequence[Path], indices: Iterable[int]) -> Sequence[Path]:
    """Those at `indices`, in that order."""
    return paths.take(indices) if isinstance(paths, PathsBelow) else [paths[i] for i in indices]


def texts(paths: Iterable[Path]) -> Iterator[str]:
    """Paths as texts, which the functions of `os` take as they are, several times as fast."""
    return paths.texts() if isinstance(paths, PathsBelow) else map(str, paths)
