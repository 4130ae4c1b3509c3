"""Data sets that torchvision knows how to read and download."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from riftcli.errors import DataError, nearest
from riftcli.images import check_split, existing_root, to_rgb
from riftcli.protocols import Split

# name -> its splits
_TRAIN_FLAG = ["train", "test"]
_SETS: dict[str, list[str]] = {
    "FashionMNIST": _TRAIN_FLAG,
    "MNIST": _TRAIN_FLAG,
    "KMNIST": _TRAIN_FLAG,
    "CIFAR10": _TRAIN_FLAG,
    "CIFAR100": _TRAIN_FLAG,
    "OxfordIIITPet": ["trainval", "test"],
    "Flowers102": ["train", "val", "test"],
    "SVHN": ["train", "test", "extra"],
    "StanfordCars": ["train", "test"],
    "DTD": ["train", "val", "test"],
    "Food101": ["train", "test"],
}
_BY_FLAG = ("FashionMNIST", "MNIST", "KMNIST", "CIFAR10", "CIFAR100")


@dataclass(frozen=True)
class Torchvision:
    """A torchvision classification data set, in torchvision's own layout below `root`.

    name: FashionMNIST, CIFAR10, CIFAR100, OxfordIIITPet, Flowers102, SVHN, ...; root: folder that torchvision expects.
    args: further arguments of the torchvision class; download: fetch it first (needs a network).
    """

    name: str
    root: str = "data"
    download: bool = False
    args: dict[str, str | int | bool] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.name not in _SETS:
            raise ValueError(f"name: unknown data set{nearest(self.name, list(_SETS))}; one of: {', '.join(_SETS)}")

    def load(self, split: str) -> Split:
        """List one split; images are decoded when they are read."""
        import numpy as np
        from torchvision import datasets

        check_split(f"torchvision {self.name}", split, _SETS[self.name])
        if not self.download:
            existing_root(self.root)
        which: dict[str, Any] = {"split": split}
        if self.name in _BY_FLAG:
            which = {"train": split == "train"}
        try:
            source = getattr(datasets, self.name)(self.root, download=self.download, **which, **self.args)
        except (RuntimeError, FileNotFoundError, ValueError, TypeError, OSError) as error:
            raise DataError(
                f"torchvision {self.name} in {self.root}: {str(error).splitlines()[0]}; "
                "check data.root, or --set data.download=true on a machine with a network"
            ) from error
        targets = _targets(source)
        count = int(targets.max()) + 1
        classes = [str(name) for name in getattr(source, "classes", range(count))]
        return Split(
            name=split,
            ids=[f"{self.name}-{split}-{i:06d}" for i in range(len(source))],
            targets=np.asarray(targets, dtype="int64"),
            classes=classes if len(classes) >= count else [str(i) for i in range(count)],
            read=_Reader(source, f"{self.name} {split}"),
        )


def _targets(source: Any) -> Any:
    """Labels without decoding an image; torchvision has no one name for them."""
    import numpy as np

    for name in ("targets", "labels", "_labels"):
        if hasattr(source, name):
            return np.asarray(getattr(source, name))
    if hasattr(source, "_samples"):
        return np.asarray([label for _, label in source._samples])
    return np.asarray([source[i][1] for i in range(len(source))])


class _Reader:
    def __init__(self, source: Any, name: str) -> None:
        self.source: Callable[[int], Any] = source.__getitem__
        self.name = name

    def __call__(self, i: int) -> Any:
        try:
            return to_rgb(self.source(i)[0], f"{self.name}, image {i}")
        except (OSError, SyntaxError, ValueError) as error:
            raise DataError(f"{self.name}, image {i}: unreadable image ({error}); fetch the data set again") from error
