"""Functional Map of the World as WILDS publishes it (version 1.1)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from riftcli.data.folders import check_split, existing_root
from riftcli.data.label_table import Cells, LabelTable, read_csv
from riftcli.data.sample_list import ImageFinder, LabelRow, SampleList
from riftcli.data.split import Split
from riftcli.errors import DataError, Problems
from riftcli.protocols import Task

SPLITS = {  # ours (WILDS') -> (split of the original data, from which year, before which)
    "train": ("train", 0, 2013),
    "id_val": ("val", 0, 2013),
    "id_test": ("test", 0, 2013),
    "val": ("val", 2013, 2016),
    "test": ("test", 2016, 10_000),
}


@dataclass(frozen=True)
class Fmow:
    """Land use seen from satellites: rgb_metadata.csv, country_code_mapping.csv and images/ below root (or its fmow_v1.1).

    Splits: train, id_val, id_test (before 2013), val (2013 to 2015) and test (from 2016). Classes are the 62 categories in
    alphabetical order; `region` is a group column, empty where a country has none (worst_group leaves those out).
    follow_links: also take files outside root that links or names lead to.
    """

    known_task: ClassVar[Task] = "multiclass"

    root: str
    follow_links: bool = False

    def load(self, split: str) -> Split:
        """List one split in the order of rgb_metadata.csv; row i of it is images/rgb_img_<i>.png."""
        root = existing_root(self.root)
        check_split(f"fmow {self.root}", split, list(SPLITS))
        base = next((p for p in (root, root / "fmow_v1.1") if (p / "rgb_metadata.csv").is_file()), None)
        if base is None:
            raise DataError(f"{root}: no rgb_metadata.csv in it or in fmow_v1.1; unpack WILDS' archive of FMoW 1.1 there")
        path, problems = base / "rgb_metadata.csv", Problems()
        table = LabelTable(image_column="category", extra_columns=["split", "timestamp", "country_code"])
        cells = table.cells(path, problems)
        classes = sorted({row["category"].strip() for _, row in cells})
        regions = _regions(base / "country_code_mapping.csv")
        samples = SampleList(ImageFinder([base / "images"]), None, problems)
        samples.extend(_rows(path, cells, split, classes, regions, problems))
        return samples.split(split, classes, "multiclass", str(path))


def _rows(
    path: Path, cells: list[Cells], split: str, classes: list[str], regions: dict[str, str], problems: Problems
) -> list[LabelRow]:
    original, first, last = SPLITS[split]
    rows = []
    for number, (line, row) in enumerate(cells):
        if row["split"] != original:
            continue
        year = row["timestamp"][:4]
        if not year.isdecimal():
            problems.add(f"{path}:{line}: timestamp '{row['timestamp'][:30]}' does not start with a year")
        elif first <= int(year) < last:
            groups = {"region": regions.get(row["country_code"].strip(), ""), "year": year}
            rows.append(LabelRow(path, line, f"rgb_img_{number}.png", classes.index(row["category"].strip()), groups))
    return rows


def _regions(path: Path) -> dict[str, str]:
    """Country code of three letters -> region."""
    header, lines = read_csv(path, ",")
    for column in ("alpha-3", "region"):
        if column not in header:
            raise DataError(f"{path}:1: no column '{column}'; it has: {', '.join(header)}")
    code, region = header.index("alpha-3"), header.index("region")
    return {cells[code].strip(): cells[region].strip() for _, cells in lines if len(cells) > max(code, region)}
