"""CUB-200-2011: birds in 200 classes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from riftcli.data.folders import check_split, existing_root
from riftcli.data.label_table import numbered_lines
from riftcli.data.sample_list import ImageFinder, LabelRow, SampleList
from riftcli.data.split import Split
from riftcli.errors import DataError, Problems
from riftcli.protocols import Task

_FILES = ["images.txt", "image_class_labels.txt", "train_test_split.txt"]


@dataclass(frozen=True)
class Cub200:
    """CUB-200-2011 as its tgz unpacks: root holds CUB_200_2011/, or is that folder.

    Splits: train (5,994) and test (5,794), from train_test_split.txt (1 is train). Files are joined by image id, not by line.
    follow_links: also take files outside root that links or names lead to.
    """

    known_task: ClassVar[Task] = "multiclass"

    root: str
    follow_links: bool = False

    def load(self, split: str) -> Split:
        """Join the four lists and take one split, in the order of the ids."""
        root = existing_root(self.root)
        check_split(f"cub200 {self.root}", split, ["train", "test"])
        base = root / "CUB_200_2011" if (root / "CUB_200_2011").is_dir() else root
        if not (base / "images.txt").is_file():
            raise DataError(f"{base}: no images.txt; expected CUB_200_2011/ with images/, classes.txt, {', '.join(_FILES)}")
        problems = Problems()
        classes = _pairs(base / "classes.txt", problems)
        images, labels, flags = (_pairs(base / name, problems) for name in _FILES)
        for name, table in zip(_FILES[1:], (labels, flags), strict=True):
            for key in list(images.keys() ^ table.keys())[:5]:
                have, lack = ("images.txt", name) if key in images else (name, "images.txt")
                problems.add(f"{base / lack}: image id {key} is missing; {have} has it: unpack the archive again")
        problems.raise_if_any()
        names = [classes.get(str(i + 1), (0, ""))[1] for i in range(len(classes))]
        if "" in names:
            raise DataError(f"{base / 'classes.txt'}: class ids must be 1..{len(classes)} without a gap")
        rows = []
        for key in sorted(images, key=int):
            (line, label), (flag_line, flag) = labels[key], flags[key]
            if not label.isdecimal() or not 1 <= int(label) <= len(names):
                problems.add(f"{base / _FILES[1]}:{line}: image id {key}: class {label} is not in 1..{len(names)}")
            elif flag not in ("0", "1"):
                problems.add(f"{base / _FILES[2]}:{flag_line}: image id {key}: flag {flag} is not 1 (train) or 0 (test)")
            elif (flag == "1") == (split == "train"):
                rows.append(LabelRow(base / "images.txt", images[key][0], images[key][1], int(label) - 1))
        samples = SampleList(ImageFinder([base / "images"]), None, problems)
        samples.extend(rows)
        return samples.split(split, [re.sub(r"^[0-9]+\.", "", name) for name in names], "multiclass", str(base / _FILES[2]))


def _pairs(path: Path, problems: Problems) -> dict[str, tuple[int, str]]:
    """`id value` lines as id -> (line number, value)."""
    found: dict[str, tuple[int, str]] = {}
    for number, line in numbered_lines(path):
        key, space, value = line.strip().partition(" ")
        if not space or not key.isdecimal():
            problems.add(f"{path}:{number}: expected an id and a value with a space between, got '{line.strip()[:60]}'")
        elif key in found:
            problems.add(f"{path}:{number}: id {key} is listed twice (first on line {found[key][0]}); unpack the archive again")
        else:
            found[key] = (number, value.strip())
    return found
