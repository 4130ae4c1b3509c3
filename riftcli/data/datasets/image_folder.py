"""One folder per class: root/<split>/<class>/**/image."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from riftcli.data.folders import check_exist, check_no_loose_images, check_split, existing_root
from riftcli.data.images import EXTENSIONS, FileReader
from riftcli.data.split import Split
from riftcli.errors import DataError


@dataclass(frozen=True)
class ImageFolder:
    """Images in `root/<split>/<class>/`, nested folders included; one label per image.

    Classes are the sorted folder names. Hidden folders and `__MACOSX` are skipped; an empty class folder is an error.
    """

    root: str

    def load(self, split: str) -> Split:
        """List one split in sorted order."""
        import numpy as np

        root = existing_root(self.root)
        splits = [p.name for p in sorted(root.iterdir()) if _visible_folder(p)]
        check_split(f"image_folder {self.root}", split, splits)
        folder = root / split
        class_folders = [p for p in sorted(folder.iterdir()) if _visible_folder(p)]
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
        if len(class_folders) == 1 and [p for p in class_folders[0].iterdir() if _visible_folder(p)]:
            inner = class_folders[0]
            raise DataError(
                f"{folder}: holds one folder, {inner.name}/, with folders in it: it would be the only class; "
                f"move its content up, so that it is {folder}/<class>/<image>"
            )
        check_no_loose_images(folder, "move each into the folder of its class, or away")
        paths, targets = [], []
        for label, class_folder in enumerate(class_folders):
            images = sorted(
                p
                for p in class_folder.rglob("*")
                if p.suffix.lower() in EXTENSIONS and not any(part.startswith(".") for part in p.relative_to(folder).parts)
            )
            if not images:
                raise DataError(f"{class_folder}: class folder without images ({', '.join(EXTENSIONS)}); fill it or remove it")
            paths += images
            targets += [label] * len(images)
        check_exist(paths)
        return Split(
            name=split,
            ids=[p.relative_to(root).as_posix() for p in paths],
            targets=np.asarray(targets, dtype="int64"),
            classes=[p.name for p in class_folders],
            read=FileReader(paths),
            paths=paths,
        )


def _visible_folder(path: Path) -> bool:
    return path.is_dir() and not path.name.startswith(".") and path.name != "__MACOSX"
