"""What two splits must not share beyond samples: groups such as a patient, and copies of a file under another name."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from riftcli.data.split import Split
from riftcli.errors import DataError

COPIES = "same content"  # `by` of files that are the same under another name


@dataclass(frozen=True)
class Leak:
    """images of split `second` that are of a group with images in `first`. by: the column, or COPIES; held: the recipe says that
    its groups must be whole.
    """

    first: str
    second: str
    by: str
    images: int
    held: bool = False

    @property
    def key(self) -> str:
        """In reports: `train/test (patient)`."""
        return f"{self.first}/{self.second} ({self.by})"

    @property
    def text(self) -> str:
        """In words."""
        if self.by == COPIES:
            return f"{self.images} images of {self.second} are copies of images in {self.first}"
        return f"{self.images} images of {self.second} are of a {self.by} with images in {self.first}"


def group_leaks(splits: dict[str, Split], held: Iterable[str]) -> tuple[Leak, ...]:
    """Of every pair of splits and every column that both have."""
    found, names, whole = [], list(splits), set(held)
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            one, other = splits[first], splits[second]
            for column in sorted(one.groups.keys() & other.groups.keys()):
                seen = set(one.groups[column])
                count = sum(value in seen for value in other.groups[column])
                if count:
                    found.append(Leak(first, second, column, count, column in whole))
    return tuple(found)


def refuse_leaks(leaks: Iterable[Leak], allow: bool) -> None:
    """Raise DataError for the first group that must be whole and is not, unless that is allowed."""
    leak = next((leak for leak in leaks if leak.held), None)
    if leak is not None and not allow:
        by = leak.by
        raise DataError(
            f"group '{by}': {leak.images} images of '{leak.second}' are of a {by} with images in '{leak.first}': the result "
            f"would not be on unseen {by}s; give each {by} to one split, cut the test split from the training split with "
            f"--set 'data.test={{fraction: 0.2, group: {by}}}', or set data.allow_overlap: true, which writes the number into "
            "every report"
        )
