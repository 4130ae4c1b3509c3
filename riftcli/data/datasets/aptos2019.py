"""APTOS 2019: fundus photographs, five grades of diabetic retinopathy."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from riftcli.data.folders import check_split, existing_root, inside
from riftcli.data.label_table import Cells, LabelTable, first_existing
from riftcli.data.sample_list import ImageFinder, OnDuplicate, SampleList
from riftcli.data.split import Split
from riftcli.errors import DataError, Problems
from riftcli.protocols import Task

CLASSES = ["No DR", "Mild", "Moderate", "Severe", "Proliferative DR"]
OFFICIAL_ROWS = 3662
_FILES = {"train": ["train_1.csv", "train.csv"], "val": ["valid.csv", "val.csv"], "test": ["test.csv"]}
_FOLDERS = {"train": ["train"], "val": ["val", "valid"], "test": ["test"]}
# The 2,930 / 366 / 366 of the papers is the official train.csv, sorted by id, cut in this order.
_CUT = {"val": slice(0, 366), "train": slice(366, 3296), "test": slice(3296, 3662)}


@dataclass(frozen=True)
class Aptos2019:
    """APTOS 2019 in the split 2,930 / 366 / 366 (train, val, test), from either download.

    split_rule: auto | mirror (train_1.csv, valid.csv, test.csv with labels) | contiguous (the competition's train.csv of 3,662
    rows, sorted by id and cut 366 val, 2,930 train, 366 test; its own test.csv has no labels). auto takes the mirror where
    a valid.csv is there.
    labels: {split: file} and images: folders, both below root, for other arrangements; image_suffix:
    of the files, for copies that were saved again.
    on_duplicate: error | first | keep, for an id listed twice with one grade.
    follow_links: also take files outside root that links or names lead to.
    """

    known_task: ClassVar[Task] = "multiclass"

    root: str
    split_rule: Literal["auto", "mirror", "contiguous"] = "auto"
    labels: dict[str, str] = field(default_factory=dict)
    images: list[str] = field(default_factory=list)
    image_suffix: str = ".png"
    on_duplicate: OnDuplicate = "error"
    follow_links: bool = False

    def load(self, split: str) -> Split:
        """Parse one split; a grade may have become 2.0 on the way through a data frame."""
        root = existing_root(self.root)
        check_split(f"aptos2019 {self.root}", split, list(_FILES))
        official = self._contiguous(root) and split not in self.labels
        source = "train" if official else split
        own = self.labels.get(split)
        path = inside(root, own, self.follow_links, "data.labels") if own is not None else self._find_labels(root, source)
        table = LabelTable(
            image_column="id_code",
            label_column="diagnosis",
            classes=CLASSES,
            unlabelled_hint="the competition's hidden test set has no labels",
        )
        problems = Problems()
        cells = self._cells(table, path, split, problems)
        if official:
            cells = _cut(path, cells, split)
        finder = ImageFinder(self._image_folders(root, source), self.image_suffix)
        samples = SampleList(finder, self.on_duplicate, problems)
        samples.extend(table.rows(path, cells, problems))
        return samples.split(split, CLASSES, "multiclass", str(path))

    def _contiguous(self, root: Path) -> bool:
        if self.split_rule != "auto":
            return self.split_rule == "contiguous"
        return not any((root / name).is_file() for name in _FILES["val"])

    def _find_labels(self, root: Path, split: str) -> Path:
        remedy = "expected the three CSV files of the mirror, or the competition's train.csv; or set data.labels"
        return first_existing(root, _FILES[split], f"label file for split '{split}'", remedy)

    def _image_folders(self, root: Path, split: str) -> list[Path]:
        if self.images:
            return [inside(root, name, self.follow_links, "data.images") for name in self.images]
        tried = [name for stem in _FOLDERS[split] for name in (f"{stem}_images/{stem}_images", f"{stem}_images")]
        folder = first_existing(root, tried, f"image folder for split '{split}'", "unpack the images here, or set data.images")
        return [folder]

    def _cells(self, table: LabelTable, path: Path, split: str, problems: Problems) -> list[Cells]:
        try:
            return table.cells(path, problems)
        except DataError as error:
            if split == "test" and "no column 'diagnosis'" in str(error):
                raise DataError(
                    f"{path}:1: no column 'diagnosis': this is the competition's test.csv, whose labels were never published; "
                    "use the mirror's test.csv, or --set data.split_rule=contiguous with the competition's train.csv"
                ) from error
            raise


def _cut(path: Path, cells: list[Cells], split: str) -> list[Cells]:
    ids = [row["id_code"].strip() for _, row in cells]
    if len(ids) != OFFICIAL_ROWS:
        raise DataError(
            f"{path}: {len(ids):,} rows; the contiguous rule cuts the competition's train.csv of {OFFICIAL_ROWS:,} rows; "
            "give the splits as files with data.labels"
        )
    for (line, _), before, after in zip(cells[1:], ids, ids[1:], strict=False):
        if after <= before:
            raise DataError(
                f"{path}:{line}: id '{after}' comes after '{before}': the contiguous rule needs the competition's train.csv, "
                "sorted by id"
            )
    return cells[_CUT[split]]
