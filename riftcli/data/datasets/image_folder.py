"""One folder per class: root/<split>/<class>/**/image, or root/<class>/**/image as the one split `all`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from riftcli.data.dicom import GROUPS, header_group
from riftcli.data.folders import (
    check_exist,
    check_no_loose_images,
    check_split,
    existing_root,
    holds_images,
    names_below,
    split_of,
    total,
    visible_folders,
)
from riftcli.data.images import EXTENSIONS, FileReader
from riftcli.data.paths import PathsBelow
from riftcli.data.split import Split
from riftcli.errors import DataError
from riftcli.protocols import Task


@dataclass(frozen=True)
class ImageFolder:
    """Images in `root/<split>/<class>/`, nested folders included; one label per image.

    Where root holds the class folders themselves, they are the split `all`: set train to it and cut the others by a fraction.
    group_by: what belongs together, for `group` of val and test: folder (the one right below the class, e.g. a slide), name (the
    file name without its last numbers: tiles of one slide), patient or study (of DICOM headers, column `patient` or `study`).
    Classes are the sorted folder names. Hidden folders and `__MACOSX` are skipped; an empty class folder is an error.
    follow_links: also take files outside root that links or names lead to.
    """

    known_task: ClassVar[Task] = "multiclass"

    root: str
    group_by: Literal["none", "folder", "name", "patient", "study"] = "none"
    follow_links: bool = False

    def load(self, split: str) -> Split:
        """List one split in sorted order."""
        import numpy as np

        root = existing_root(self.root)
        splits = [p.name for p in visible_folders(root)]
        whole = split not in splits and holds_classes(root)
        if whole and split != "all":
            named = ", ".join(splits[:3]) + ", ..." * (len(splits) > 3)
            raise DataError(
                f"image_folder {self.root}: no split '{split}': its folders are classes ({named}), which are the split 'all'; "
                "cut the others from it: --set data.train=all --set 'data.val={fraction: 0.1}' --set 'data.test={fraction: 0.2}'"
            )
        if not whole:
            check_split(f"image_folder {self.root}", split, splits, cuttable=True)
        folder = root if whole else root / split
        class_folders = visible_folders(folder)
        if not class_folders:
            loose = [p.name for p in folder.iterdir() if p.suffix.lower() in EXTENSIONS]
            other = (
                "imagenet, with its label file"
                if any("ILSVRC2012_val" in name for name in loose)
                else "csv_table with a label file"
            )
            raise DataError(
                f"{folder}: no class folders{f' but {len(loose)} loose images' if loose else ''}; "
                f"expected {folder}/<class>/<image>, or use data.format {other}"
            )
        if len(class_folders) == 1 and visible_folders(class_folders[0]):
            inner = class_folders[0]
            raise DataError(
                f"{folder}: holds one folder, {inner.name}/, with folders in it: it would be the only class; "
                f"move its content up, so that it is {folder}/<class>/<image>"
            )
        check_no_loose_images(folder, "move each into the folder of its class, or away")
        names: list[str] = []
        links: list[str] = []
        targets, ignored = [], []
        for label, class_folder in enumerate(class_folders):
            images, linked, others = names_below(class_folder)
            ignored.append(others)
            if not images:
                raise DataError(f"{class_folder}: class folder without images ({', '.join(EXTENSIONS)}); fill it or remove it")
            prefix = f"{class_folder.relative_to(root).as_posix()}/"
            names += [prefix + name for name in images]
            links += [prefix + name for name in linked]
            targets += [label] * len(images)
        check_exist([root / name for name in links])  # the others were seen
        paths = PathsBelow(root, names, frozenset(links))
        return Split(
            name=split,
            ids=names,
            targets=np.asarray(targets, dtype="int64"),
            classes=[p.name for p in class_folders],
            read=FileReader(paths),
            paths=paths,
            ignored=total(ignored),
            groups={} if self.group_by == "none" else {self.group_by: group_names(paths, self.group_by, folder)},
        )


NUMBERED = re.compile(r"(fold|cv|split|part|set)?[ _-]?[0-9]+", re.IGNORECASE)
COUNTER = re.compile(r"([ _.-]+[xyz]?[0-9]+)+$")  # what tells the tiles of a slide apart: `_12_7`, `-x3-y4`


def group_names(paths: Sequence[Path], how: str, folder: Path) -> list[str]:
    """What each image belongs to. folder: the one that holds the class folders."""
    if how in GROUPS:
        return [header_group(path, how) for path in paths]
    if how == "name":
        return [COUNTER.sub("", path.stem) or path.stem for path in paths]
    below = [path.relative_to(folder).parts for path in paths]  # class, [folder], file
    loose = next((path for path, parts in zip(paths, below, strict=True) if len(parts) < 3), None)
    if loose is not None:
        raise DataError(
            f"{loose}: lies right in its class folder, so data.group_by folder has no name for it; use another group_by"
        )
    return [parts[1] for parts in below]


def holds_classes(root: Path) -> bool:
    """True when the folders of `root` are classes rather than splits: two or more with images (an empty one is then an empty
    class), none named like a split, and no folds: numbered folders with the same folders in each.
    """
    folders = visible_folders(root)
    if any(split_of(p.name) for p in folders) or same_inside(folders):
        return False
    return sum(map(holds_images, folders)) > 1


def same_inside(folders: list[Path]) -> list[str]:
    """The names of the folders that all of several numbered folders (fold0, fold1) have in them, two or more; else none."""
    if not all(NUMBERED.fullmatch(folder.name) for folder in folders):
        return []
    inside = [[p.name for p in visible_folders(folder)] for folder in folders]
    return inside[0] if len(inside) > 1 and len(inside[0]) > 1 and all(names == inside[0] for names in inside) else []
