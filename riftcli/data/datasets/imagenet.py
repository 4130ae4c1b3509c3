"""ImageNet-1K as folders, or with the validation images in one flat folder and their labels in a file."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from riftcli.data.folders import check_no_loose_images, check_split, existing_root, inside
from riftcli.data.images import EXTENSIONS
from riftcli.data.label_table import LabelTable, first_existing, numbered_lines
from riftcli.data.sample_list import ImageFinder, LabelRow, SampleList
from riftcli.data.split import Split
from riftcli.errors import DataError, Problems
from riftcli.protocols import Task

_BASES = ["", "ILSVRC/Data/CLS-LOC", "Data/CLS-LOC"]
_LABELS = ["LOC_val_solution.csv", "ILSVRC2012_validation_ground_truth.txt"]
_DEVKIT = "ILSVRC2012_devkit_t12/data"


@dataclass(frozen=True)
class ImageNet:
    """ImageNet-1K below root (or its ILSVRC/Data/CLS-LOC): train/<wnid>/ and val/<wnid>/, or a flat val/ with a label file.

    Classes are the sorted wnids, the order of timm's weights (the devkit numbers them in another).
    labels: file for a flat val/; default: LOC_val_solution.csv, or ILSVRC2012_validation_ground_truth.txt with the devkit's
    meta.mat.
    follow_links: also take files outside root that links or names lead to.
    """

    known_task: ClassVar[Task] = "multiclass"

    root: str
    labels: str | None = None
    follow_links: bool = False

    def load(self, split: str) -> Split:
        """List train or val."""
        root = existing_root(self.root)
        check_split(f"imagenet {self.root}", split, ["train", "val"])
        base = next((root / name for name in _BASES if (root / name / split).is_dir()), None)
        if base is None:
            raise DataError(f"{root}: no folder {split}/; expected {split}/<wnid>/<image> in it or in {_BASES[1]}")
        folder = base / split
        wnids = sorted(p.name for p in folder.iterdir() if p.is_dir() and re.fullmatch(r"n[0-9]{8}", p.name))
        problems = Problems()
        samples = SampleList(ImageFinder([folder], ".JPEG" if not wnids else ""), None, problems)
        if wnids:
            check_no_loose_images(folder, "move each into the folder of its class")
            classes = wnids
            samples.extend(_folder_rows(folder, wnids, problems))
        else:
            labels, source = self._flat_labels(root, base, folder)
            train = base / "train"
            classes = sorted({wnid for _, _, wnid in labels})
            if train.is_dir():
                classes = sorted(p.name for p in train.iterdir() if re.fullmatch(r"n[0-9]{8}", p.name)) or classes
            unknown = sorted({wnid for _, _, wnid in labels} - set(classes))
            if unknown:
                raise DataError(f"{source}: class {unknown[0]} has no folder in {train}; unpack the training set completely")
            index = {wnid: i for i, wnid in enumerate(classes)}
            samples.extend(LabelRow(source, line, name, index[wnid]) for line, name, wnid in labels)
        return samples.split(split, classes, "multiclass", str(folder))

    def _flat_labels(self, root: Path, base: Path, folder: Path) -> tuple[list[tuple[int, str, str]], Path]:
        """([(line, image id, wnid)], label file) of a flat folder."""
        if not any(path.suffix.lower() in EXTENSIONS for path in folder.iterdir()):
            raise DataError(f"{folder}: neither <wnid>/ folders nor images; unpack the archive of this split here")
        remedy = "images lie loose here, so their labels must come from a file: put one of these there, or set data.labels"
        if self.labels:
            inside(root, self.labels, self.follow_links, "data.labels")
        tried = [self.labels] if self.labels else [*_LABELS, f"{_DEVKIT}/{_LABELS[1]}"]
        path = first_existing(root, tried, f"labels for {folder}", remedy)
        if path.suffix == ".csv":
            return _solution(path), path
        return _ground_truth(path, root, folder), path


def _folder_rows(folder: Path, wnids: list[str], problems: Problems) -> list[LabelRow]:
    rows = []
    for target, wnid in enumerate(wnids):
        names = sorted(p.name for p in (folder / wnid).iterdir() if p.suffix.lower() in EXTENSIONS and p.name[0] != ".")
        if not names:
            problems.add(f"{folder / wnid}: class folder without images; unpack it again or remove it")
        rows += [LabelRow(folder, 0, f"{wnid}/{name}", target) for name in names]
    return rows


def _solution(path: Path) -> list[tuple[int, str, str]]:
    """Kaggle's file: `ILSVRC2012_val_00048981,n03995372 85 1 499 272`, in no order; the first word is the class."""
    table, problems = LabelTable(image_column="ImageId", extra_columns=["PredictionString"]), Problems()
    found = []
    for line, row in table.cells(path, problems):
        words = row["PredictionString"].split()
        if not words or not re.fullmatch(r"n[0-9]{8}", words[0]):
            problems.add(f"{path}:{line}: id '{row['ImageId']}': expected a wnid such as n01440764, got '{' '.join(words)[:40]}'")
        else:
            found.append((line, row["ImageId"].strip(), words[0]))
    problems.raise_if_any()
    return found


def _ground_truth(path: Path, root: Path, folder: Path) -> list[tuple[int, str, str]]:
    """The devkit's file: line i is the devkit number (from 1) of the class of the i-th image by name."""
    from scipy.io import loadmat

    remedy = "it says which class a number is: unpack the devkit"
    meta = first_existing(root, [f"{_DEVKIT}/meta.mat", "meta.mat"], "meta.mat", remedy)
    synsets: Any = loadmat(meta, squeeze_me=True)["synsets"]
    wnids = {int(entry["ILSVRC2012_ID"]): str(entry["WNID"]) for entry in synsets if int(entry["num_children"]) == 0}
    images = sorted(p.name for p in folder.iterdir() if p.suffix.lower() in EXTENSIONS and p.name[0] != ".")
    numbered = [(number, line.strip()) for number, line in numbered_lines(path)]
    lines, problems = [line for _, line in numbered], Problems()
    for number, line in numbered:
        if not line.isdecimal() or int(line) not in wnids:
            problems.add(f"{path}:{number}: expected a class number from 1 to {max(wnids)}, got '{line[:40]}'")
    problems.raise_if_any()
    if len(lines) != len(images):
        raise DataError(f"{path}: {len(lines)} labels for {len(images)} images in {folder}; one of the two is incomplete")
    return [(i, name, wnids[int(line)]) for i, (name, line) in enumerate(zip(images, lines, strict=True), 1)]
