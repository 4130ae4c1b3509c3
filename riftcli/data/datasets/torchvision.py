"""Data sets that torchvision knows how to read and download."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from riftcli.data.folders import check_exist, check_split, existing_root
from riftcli.data.images import FileReader, to_rgb
from riftcli.data.split import Split
from riftcli.errors import DataError, did_you_mean

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
    "ImageNet": ["train", "val"],
    "FGVCAircraft": ["train", "val", "trainval", "test"],
    "Caltech101": ["all"],  # these three come without splits
    "EuroSAT": ["all"],
    "SUN397": ["all"],
}
_WHOLE = ("Caltech101", "EuroSAT", "SUN397")
_BY_FLAG = ("FashionMNIST", "MNIST", "KMNIST", "CIFAR10", "CIFAR100")


@dataclass(frozen=True)
class Torchvision:
    """A torchvision classification data set, in torchvision's own layout below `root`.

    name: FashionMNIST, CIFAR10, CIFAR100, OxfordIIITPet, Flowers102, SVHN, StanfordCars, ImageNet, ...; Caltech101, EuroSAT and
    SUN397 have one split, `all`. root: folder that torchvision expects. args: further arguments of the torchvision class;
    download: fetch it first (needs a network).
    follow_links: also take files outside root that links or names lead to.
    """

    name: str
    root: str = "data"
    download: bool = False
    args: dict[str, str | int | bool] = field(default_factory=dict)
    follow_links: bool = False

    def __post_init__(self) -> None:
        if self.name not in _SETS:
            raise ValueError(f"name: unknown data set{did_you_mean(self.name, list(_SETS))}; one of: {', '.join(_SETS)}")
        if self.name in ("StanfordCars", "ImageNet") and self.download:
            raise ValueError(f"download: torchvision cannot download {self.name}; fetch it yourself and set download: false")

    def load(self, split: str) -> Split:
        """List one split; images are decoded when they are read."""
        import numpy as np
        from torchvision import datasets

        check_split(f"torchvision {self.name}", split, _SETS[self.name])
        if not self.download:
            root = existing_root(self.root)
            if self.name == "StanfordCars":
                _check_cars(root / "stanford_cars", split)
        which: dict[str, Any] = {"split": split}
        if self.name in _BY_FLAG:
            which = {"train": split == "train"}
        if self.name in _WHOLE:
            which = {}
        if self.name != "ImageNet":  # the one class without the argument
            which["download"] = self.download
        try:
            source = getattr(datasets, self.name)(self.root, **which, **self.args)
        except (RuntimeError, FileNotFoundError, ValueError, TypeError, OSError) as error:
            packed = Path(self.root).expanduser() / self.name / "raw"
            if any(not path.with_suffix("").exists() for path in packed.glob("*-ubyte.gz")):
                raise DataError(f"{packed}: its files are still packed; unpack them there: gunzip --keep *.gz") from error
            fetch = ", or --set data.download=true on a machine with a network"
            if self.name in ("StanfordCars", "ImageNet"):
                fetch = "; data.format imagenet reads folders and a flat val/ without meta.bin" * (self.name == "ImageNet")
            raise DataError(
                f"torchvision {self.name} in {self.root}: {str(error).splitlines()[0]}; check data.root{fetch}"
            ) from error
        if self.name == "SUN397":  # torchvision lists it in the order of the file system
            pairs = sorted(zip(source._image_files, source._labels, strict=True))
            source._image_files, source._labels = ([pair[i] for pair in pairs] for i in (0, 1))
        targets = _targets(source)
        count = int(targets.max()) + 1
        # ImageNet has several names a class, and two cranes: its wnids are what tells them apart
        classes = [str(name) for name in _class_names(source, count)]
        paths = _paths(source)
        if paths is not None:
            check_exist(paths)
        return Split(
            name=split,
            ids=[f"{self.name}-{split}-{i:06d}" for i in range(len(source))] if paths is None else _ids(paths, self.root),
            targets=np.asarray(targets, dtype="int64"),
            classes=classes if len(classes) >= count else [str(i) for i in range(count)],
            read=_Reader(source, f"{self.name} {split}") if paths is None else FileReader(paths),
            paths=paths,
        )


def _class_names(source: Any, count: int) -> Any:
    for name in ("wnids", "classes", "categories"):
        if hasattr(source, name):
            return getattr(source, name)
    return range(count)


def _paths(source: Any) -> list[Path] | None:
    """The image files behind a torchvision set, where there are files; torchvision has no one name for them either."""
    if hasattr(source, "categories") and hasattr(source, "index"):  # Caltech101 numbers the images of a class
        base = Path(source.root) / "101_ObjectCategories"
        pairs = zip(source.y, source.index, strict=True)
        return [base / source.categories[label] / f"image_{number:04d}.jpg" for label, number in pairs]
    for name in ("_images", "_image_files"):
        if hasattr(source, name):
            return [Path(path) for path in getattr(source, name)]
    for name in ("_samples", "samples"):
        if hasattr(source, name):
            return [Path(path) for path, _ in getattr(source, name)]
    return None


def _ids(paths: list[Path], root: str) -> list[str]:
    base = Path(root).expanduser().resolve()
    return [path.resolve().relative_to(base).as_posix() if path.resolve().is_relative_to(base) else str(path) for path in paths]


def _check_cars(base: Path, split: str) -> None:
    """What is usually wrong with a copy of Stanford Cars; torchvision says `not found` to all of it."""
    annotations = "devkit/cars_train_annos.mat" if split == "train" else "cars_test_annos_withlabels.mat"
    needed = [f"cars_{split}", annotations, "devkit/cars_meta.mat"]
    missing = [name for name in needed if not (base / name).exists()]
    hint = ""
    if (base / "car_devkit" / "devkit").is_dir():
        hint = "; move car_devkit/devkit up to devkit"
    elif annotations in missing and split == "test":
        hint = "; the devkit's cars_test_annos.mat has no labels: the file with labels is published separately"
    if missing:
        raise DataError(f"{base}: Stanford Cars needs {', '.join(needed)} there; missing: {', '.join(missing)}{hint}")
    if (base / f"cars_{split}" / f"cars_{split}").is_dir():
        raise DataError(f"{base / f'cars_{split}'}: holds another cars_{split}; move the images up one folder")


def _targets(source: Any) -> Any:
    """Labels without decoding an image; torchvision has no one name for them."""
    import numpy as np

    for name in ("targets", "labels", "_labels", "y"):
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
