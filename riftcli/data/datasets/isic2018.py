"""ISIC 2018, task 3: dermoscopic images of seven skin lesions (the HAM10000 images)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

from riftcli.data.folders import check_split, existing_root, inside
from riftcli.data.label_table import LabelTable, first_existing, read_csv
from riftcli.data.sample_list import ImageFinder, OnDuplicate, SampleList
from riftcli.data.split import Split
from riftcli.errors import DataError, Problems
from riftcli.protocols import Task

CLASSES = ["MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC"]  # the order of the columns, which is not the alphabet's
_PARTS = {"train": "Training", "val": "Validation", "test": "Test"}
_GROUPINGS = "ISIC2018_Task3_Training_LesionGroupings.csv"


@dataclass(frozen=True)
class Isic2018:
    """ISIC 2018 task 3 as its zip files unpack side by side: ISIC2018_Task3_{Training,Validation,Test}_{Input,GroundTruth}.

    Splits: train (10,015), val (193) and test (1,512). Group `lesion` (several images show one lesion) comes from
    ISIC2018_Task3_Training_LesionGroupings.csv.
    labels: {split: file} and images: folders, both below root, for copies that are arranged in another way.
    on_duplicate: error | first | keep, for an id listed twice with one label.
    follow_links: also take files outside root that links or names lead to.
    """

    known_task: ClassVar[Task] = "multiclass"

    root: str
    labels: dict[str, str] = field(default_factory=dict)
    images: list[str] = field(default_factory=list)
    on_duplicate: OnDuplicate = "error"
    follow_links: bool = False

    def load(self, split: str) -> Split:
        """Parse one split; classes are found by column name, whatever the order of the columns."""
        root = existing_root(self.root)
        check_split(f"isic2018 {self.root}", split, list(_PARTS))
        own = self.labels.get(split)
        path = inside(root, own, self.follow_links, "data.labels") if own is not None else self._find_labels(root, split)
        self._check_columns(path)
        table = LabelTable(
            image_column="image",
            label_columns=CLASSES,
            id_pattern=r"ISIC_[0-9]{7}(\.jpg)?",
            id_hint="is not an ISIC id (ISIC_ and seven digits); is this the ground truth of task 3?",
        )
        problems = Problems()
        samples = SampleList(ImageFinder(self._folders(root, split), ".jpg"), self.on_duplicate, problems)
        rows = table.rows(path, table.cells(path, problems), problems)
        samples.extend(replace(row, id=row.id.removesuffix(".jpg")) for row in rows)
        found = samples.split(split, CLASSES, "multiclass", str(path))
        return self._with_lesions(root, found) if split == "train" else found

    def _find_labels(self, root: Path, split: str) -> Path:
        name = f"ISIC2018_Task3_{_PARTS[split]}_GroundTruth"
        other = sorted(path.name for path in root.glob("ISIC2018_Task[12]*"))
        remedy = "unpack the zip of the same name here, or set data.labels"
        if other:
            remedy = f"{other[0]} belongs to another task: this format reads task 3; {remedy}"
        tried = [f"{name}/{name}.csv", f"{name}/{name}/{name}.csv", f"{name}.csv"]
        return first_existing(root, tried, f"label file for split '{split}'", remedy)

    def _folders(self, root: Path, split: str) -> list[Path]:
        if self.images:
            return [inside(root, name, self.follow_links, "data.images") for name in self.images]
        name = f"ISIC2018_Task3_{_PARTS[split]}_Input"
        tried = [f"{name}/{name}", name, _PARTS[split].lower(), split]  # unzip can leave a doubled level
        folder = first_existing(root, tried, f"image folder for split '{split}'", "unpack the images here, or set data.images")
        return [folder]

    def _check_columns(self, path: Path) -> None:
        header, _ = read_csv(path, ",")
        extra = [column for column in header if column not in ("image", *CLASSES)]
        if "image" in header and extra:
            later = " (this looks like ISIC 2019)" if {"AK", "SCC", "UNK"} & set(extra) else ""
            raise DataError(
                f"{path}:1: columns {', '.join(extra)} are not classes of ISIC 2018 task 3{later}, which are "
                f"{', '.join(CLASSES)}; use data.format csv_table with label_columns for another set"
            )

    def _with_lesions(self, root: Path, split: Split) -> Split:
        places = [root / _GROUPINGS, root / "ISIC2018_Task3_Training_GroundTruth" / _GROUPINGS]
        path = next((place for place in places if place.is_file()), None)
        if path is None:
            missing = f"needs {_GROUPINGS} in {root}; download it from the challenge, or set data.val.group: null"
            return replace(split, missing_groups={"lesion": missing})
        table, problems = LabelTable(image_column="image", group_columns=["lesion_id"]), Problems()
        lesions = {row["image"].strip().removesuffix(".jpg"): row["lesion_id"].strip() for _, row in table.cells(path, problems)}
        for name in split.ids:
            if not lesions.get(name.partition("#")[0]):
                problems.add(f"{path}: no lesion for id '{name}' of split 'train'; download the file again")
        problems.raise_if_any()
        return replace(split, groups={"lesion": [lesions[name.partition("#")[0]] for name in split.ids]})
