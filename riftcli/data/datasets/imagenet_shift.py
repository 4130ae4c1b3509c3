"""Test sets with classes of ImageNet-1K from elsewhere: V2, R, A, Sketch, ObjectNet."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from riftcli.data.folders import check_no_loose_images, check_split, existing_root
from riftcli.data.images import EXTENSIONS
from riftcli.data.sample_list import ImageFinder, LabelRow, SampleList
from riftcli.data.split import Split
from riftcli.errors import DataError, Problems
from riftcli.recipe.prompts import imagenet_wnids

_FOLDERS = {  # where the images lie below root, as the archives unpack
    "v2": ["imagenetv2-matched-frequency-format-val", "ImageNetV2-matched-frequency", ""],
    "r": ["imagenet-r", ""],
    "a": ["imagenet-a", ""],
    "sketch": ["sketch", "sketch/data", "imagenet-sketch", ""],
    "objectnet": ["objectnet-1.0/images", "images", ""],
}
_MAPPINGS = ["objectnet-1.0/mappings", "mappings", "../mappings"]


@dataclass(frozen=True)
class ImageNetShift:
    """A test set with classes of ImageNet-1K under other conditions; the only split is test. Classes are wnids, as format
    imagenet has them, those that the set has.

    kind: v2 (folders 0 to 999, class indices) | r, a (200 wnid folders) | sketch (1,000 wnid folders) | objectnet (the 113 of
    its classes that ImageNet has, by the files in its mappings/; one of them may stand for several of ImageNet's).
    root: the folder that the archive unpacks to, or the one above it.
    follow_links: also take files outside root that links or names lead to.
    """

    root: str
    kind: Literal["v2", "r", "a", "sketch", "objectnet"]
    follow_links: bool = False

    def load(self, split: str) -> Split:
        """List the images in sorted order."""
        root = existing_root(self.root)
        check_split(f"imagenet_shift {self.root}", split, ["test"])
        folder, named = self._folder(root)
        if self.kind == "objectnet":
            return _objectnet(root, folder)
        if self.kind == "v2":
            wnids = imagenet_wnids()
            beyond = [name for name in named if int(name) >= len(wnids)]
            if beyond:
                raise DataError(f"{folder}: folder '{beyond[0]}' is no class index from 0 to {len(wnids) - 1}")
            classes = {name: wnids[int(name)] for name in sorted(named, key=int)}
        else:
            classes = {name: name for name in named}
            known = set(imagenet_wnids())
            unknown = [name for name in named if name not in known]
            if unknown:
                raise DataError(f"{folder}: {len(unknown)} folders are no classes of ImageNet-1K (e.g. '{unknown[0]}')")
        order = sorted(classes.values())
        rows = _rows(folder, {name: order.index(wnid) for name, wnid in classes.items()})
        samples = SampleList(ImageFinder([folder]), None, Problems())
        samples.extend(rows)
        return samples.split(split, order, "multiclass", str(folder))

    def _folder(self, root: Path) -> tuple[Path, list[str]]:
        """(the folder with the class folders, their names)."""
        pattern = {"v2": r"[0-9]{1,4}", "objectnet": r"[a-z0-9_]+"}.get(self.kind, r"n[0-9]{8}")
        for name in _FOLDERS[self.kind]:
            folder = root / name
            found = sorted(p.name for p in folder.iterdir() if p.is_dir()) if folder.is_dir() else []
            found = [name for name in found if re.fullmatch(pattern, name) and name != "mappings"]
            if found:
                check_no_loose_images(folder, "move each into the folder of its class")
                return folder, found
        what = {"v2": "0 to 999", "objectnet": "air_freshener, alarm_clock, ..."}.get(self.kind, "n01443537, ...")
        raise DataError(f"{root}: no class folders ({what}) in it or in {', '.join(filter(None, _FOLDERS[self.kind]))}")


def _rows(folder: Path, targets: dict[str, int]) -> Iterator[LabelRow]:
    for name, target in targets.items():
        images = sorted(p.name for p in (folder / name).iterdir() if p.suffix.lower() in EXTENSIONS and p.name[0] != ".")
        if not images:
            raise DataError(f"{folder / name}: class folder without images; unpack it again")
        for image in images:
            yield LabelRow(folder, 0, f"{name}/{image}", target)


def _objectnet(root: Path, folder: Path) -> Split:
    """The classes that ImageNet has too; `members` of each are the wnids that count as right."""
    place = next((root / name for name in _MAPPINGS if (root / name / "objectnet_to_imagenet_1k.json").is_file()), None)
    if place is None:
        raise DataError(
            f"{root}: no mappings/objectnet_to_imagenet_1k.json, which says which classes ImageNet has; unpack it too"
        )
    folders = {label: name for name, label in _read(place / "folder_to_objectnet_label.json").items()}
    by_2012 = {int(number): int(index) for index, number in _read(place / "pytorch_to_imagenet_2012_id.json").items()}
    lines = (place / "imagenet_to_label_2012_v2").read_text(encoding="utf-8").splitlines()
    wnids = imagenet_wnids()
    wnid_of = {line.strip(): wnids[by_2012[i]] for i, line in enumerate(lines) if i in by_2012}
    members: dict[str, list[str]] = {}
    for label, names in sorted(_read(place / "objectnet_to_imagenet_1k.json").items()):
        unknown = [name for name in names.split("; ") if name not in wnid_of]
        if unknown or label not in folders:
            raise DataError(
                f"{place}: '{label}' ({(unknown or [label])[0]}) is in one mapping and not in another; unpack them again"
            )
        members[folders[label]] = [wnid_of[name] for name in names.split("; ")]
    present = {name: i for i, name in enumerate(sorted(members)) if (folder / name).is_dir()}
    missing = [name for name in members if name not in present]
    if missing:
        raise DataError(f"{folder}: {len(missing)} of {len(members)} classes have no folder (e.g. {missing[0]}); unpack it again")
    samples = SampleList(ImageFinder([folder]), None, Problems())
    samples.extend(_rows(folder, present))
    split = samples.split("test", list(present), "multiclass", str(folder))
    return replace(split, members=[members[name] for name in present])


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise DataError(f"{path}: not found; it comes with ObjectNet's archive")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path}: not valid JSON ({error})") from error
