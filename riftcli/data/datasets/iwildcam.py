"""iWildCam 2020 as WILDS publishes it (version 2.0)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from riftcli.data.folders import check_split, existing_root
from riftcli.data.label_table import LabelTable
from riftcli.data.sample_list import ImageFinder, LabelRow, SampleList
from riftcli.data.split import Split
from riftcli.errors import DataError, Problems
from riftcli.protocols import Task

SPLITS = ["train", "id_val", "id_test", "val", "test"]


@dataclass(frozen=True)
class IWildCam:
    """Animals before camera traps: metadata.csv, categories.csv and train/ below root (or its iwildcam_v2.0).

    Splits: train, id_val, id_test (the same cameras), val and test (other cameras). Classes are the 182 species in the order of
    `y`, by the Latin names of categories.csv (prompts.class_names iwildcam has the English ones); `location` is a group column.
    follow_links: also take files outside root that links or names lead to.
    """

    known_task: ClassVar[Task] = "multiclass"

    root: str
    follow_links: bool = False

    def load(self, split: str) -> Split:
        """List one split in the order of metadata.csv."""
        root = existing_root(self.root)
        check_split(f"iwildcam {self.root}", split, SPLITS)
        base = next((p for p in (root, root / "iwildcam_v2.0") if (p / "metadata.csv").is_file()), None)
        if base is None:
            raise DataError(f"{root}: no metadata.csv in it or in iwildcam_v2.0; unpack WILDS' archive of iWildCam 2.0 there")
        problems = Problems()
        classes = _classes(base / "categories.csv", problems)
        path = base / "metadata.csv"
        columns = ["split", "y", "location_remapped"]
        rows = []
        for line, row in LabelTable(image_column="filename", extra_columns=columns).cells(path, problems):
            if row["split"] != split:
                continue
            if not row["y"].isdecimal() or int(row["y"]) >= len(classes):
                problems.add(f"{path}:{line}: y '{row['y']}' is no class from 0 to {len(classes) - 1}")
                continue
            groups = {"location": row["location_remapped"].strip()}
            rows.append(LabelRow(path, line, row["filename"].strip(), int(row["y"]), groups))
        problems.raise_if_any()
        samples = SampleList(ImageFinder([base / "train"]), None, problems)
        samples.extend(rows)
        return samples.split(split, classes, "multiclass", str(path))


def _classes(file: Path, problems: Problems) -> list[str]:
    """Names in the order of y; two species of one name are told apart by their number."""
    table = LabelTable(image_column="name", extra_columns=["y"])
    named: dict[int, str] = {}
    for line, row in table.cells(file, problems):
        number = row["y"].removesuffix(".0")
        if number in ("", "99999"):  # categories that no image of this version has
            continue
        if not number.isdecimal():
            problems.add(f"{file}:{line}: y '{row['y']}' is no class number")
        else:
            named[int(number)] = row["name"].strip()
    problems.raise_if_any()
    absent = sorted(set(range(max(named, default=-1) + 1)) - set(named))
    if absent or not named:
        raise DataError(f"{file}: no category has y {absent[0] if absent else 0}; fetch it again")
    names = [named[i] for i in range(len(named))]
    return [name if names.count(name) == 1 else f"{name} {i}" for i, name in enumerate(names)]
