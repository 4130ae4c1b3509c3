"""The samples of one split, not decoded, and what every data source must offer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

from riftcli.data.paths import take
from riftcli.escaping import one_line
from riftcli.protocols import Task

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from PIL import Image


@dataclass(frozen=True)
class Split:
    """The samples of one split, not decoded: ids, targets, and how to read image i.

    paths: the file of each sample, where there is one; groups: column -> value of each sample (patient, slide, lesion);
    missing_groups: column that this source could have -> what is needed for it; captions: the texts of each sample;
    left_out: listed samples without an image, where the source was told to go on without them; members: where a class stands for
    several of another set (ObjectNet's for ImageNet's), the names of those; ignored: suffix -> number of files beside the images
    that are none.
    """

    name: str
    ids: list[str]
    targets: np.ndarray  # (N,) int64 class index, or (N, C) uint8 of 0, 1 and protocols.UNKNOWN for multi-label
    classes: list[str]
    read: Callable[[int], Image.Image]
    task: Task = "multiclass"
    groups: dict[str, list[str]] = field(default_factory=dict)
    paths: Sequence[Path] | None = None
    missing_groups: dict[str, str] = field(default_factory=dict)
    captions: list[list[str]] | None = None
    left_out: int = 0
    members: list[list[str]] | None = None
    ignored: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Ids and classes may be names of files: kept as any log, table and JSON can carry them; `paths` stay as they are."""
        for field_ in ("ids", "classes"):
            names = getattr(self, field_)
            if not all(map(str.isprintable, names)):  # nearly all are, and a split is made anew many times
                object.__setattr__(self, field_, [one_line(name) for name in names])

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, indices: Iterable[int], name: str | None = None) -> Split:
        """The samples at `indices`, in that order."""
        chosen = [int(i) for i in indices]
        return replace(
            self,
            name=name or self.name,
            ids=[self.ids[i] for i in chosen],
            targets=self.targets[chosen],
            read=_Indexed(self.read, chosen),
            groups={key: [values[i] for i in chosen] for key, values in self.groups.items()},
            paths=None if self.paths is None else take(self.paths, chosen),
            captions=None if self.captions is None else [self.captions[i] for i in chosen],
        )


class _Indexed:
    """`read` through a list of indices; a class rather than a closure so that data workers can pickle it."""

    def __init__(self, read: Callable[[int], Image.Image], indices: list[int]) -> None:
        self.read, self.indices = read, indices

    def __call__(self, i: int) -> Image.Image:
        return self.read(self.indices[i])

    def pixels(self, i: int) -> Any:
        return read_pixels(self.read, self.indices[i])


def read_pixels(read: Callable[[int], Image.Image], i: int) -> Any:
    """Image i as an array (H, W, 3) or a tensor (3, H, W) of uint8 from a reader that has it so, else as an image."""
    return getattr(read, "pixels", read)(i)


class DataSource(Protocol):
    """A data source. Its fields are the YAML keys below `data:`.

    One whose task does not depend on its files says so in `known_task`, and a recipe with another objective is refused at once.
    """

    def load(self, split: str) -> Split:
        """List the samples of one split; raise DataError naming file, line and remedy."""
