"""A table of image names and labels, in one file or one per split."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from riftcli.data.folders import check_split, existing_root, inside
from riftcli.data.label_table import LabelTable
from riftcli.data.sample_list import ImageFinder, OnDuplicate, SampleList
from riftcli.data.split import Split
from riftcli.errors import Problems
from riftcli.protocols import Task

ABSOLUTE = "; for whole paths set data.images: absolute"  # what an absolute path below `images` is answered with


@dataclass(frozen=True)
class CsvTable:
    """Labels in CSV, images in one or more folders.

    root: data folder; labels: {split: file} below it, or one file for all with `split_column`.
    images: folders below root that are searched in order, or `absolute`: the table has whole paths.
    image_column: file name or id; image_suffix: added to ids, e.g. .jpg.
    label_column: a class index or name, or with label_separator several names (`a|c`, task multilabel);
    label_columns: one 0/1 column per class (task multilabel, or one-hot multiclass).
    classes: class names in order; needed where label_column holds names, never guessed from one split.
    group_columns: columns kept for `val.group`, e.g. [patient]. delimiter: one character.
    on_duplicate: error | first | keep, for an id listed twice with one label (two labels are always an error).
    uncertain: error | zero | one | ignore, what CheXpert's -1 in a 0/1 column is to be (ignore: no loss and no metric counts
    that label of that image; task multilabel); an empty cell, where nothing is said, is then 0.
    follow_links: also take files outside root that links or names lead to.
    """

    root: str
    labels: dict[str, str] | str
    images: list[str] | Literal["absolute"] = field(default_factory=lambda: ["."])
    image_column: str = "image"
    image_suffix: str = ""
    label_column: str | None = None
    label_separator: str | None = None
    label_columns: list[str] = field(default_factory=list)
    task: Literal["multiclass", "multilabel"] = "multiclass"
    classes: list[str] = field(default_factory=list)
    split_column: str | None = None
    group_columns: list[str] = field(default_factory=list)
    delimiter: str = ","
    on_duplicate: OnDuplicate = "error"
    uncertain: Literal["error", "zero", "one", "ignore"] = "error"
    follow_links: bool = False

    def __post_init__(self) -> None:
        if bool(self.label_column) == bool(self.label_columns):
            raise ValueError("label_column: give either label_column or label_columns")
        if self.task == "multilabel" and not self.label_columns and not self.label_separator:
            raise ValueError("label_columns: task multilabel needs one 0/1 column per class, or label_separator")
        if self.label_separator and (self.task != "multilabel" or not self.classes or not self.label_column):
            raise ValueError("label_separator: needs task multilabel, label_column and classes")
        if isinstance(self.labels, str) and not self.split_column:
            raise ValueError("split_column: needed when one labels file holds all splits")
        if self.uncertain == "ignore" and self.task != "multilabel":
            raise ValueError("uncertain: one label per image cannot be ignored; use zero, or leave those rows out")
        if len(set(self.classes)) != len(self.classes):
            raise ValueError("classes: a name stands twice")
        if len(self.delimiter) != 1:
            raise ValueError("delimiter: must be one character")

    @property
    def known_task(self) -> Task:
        """Known before anything is read."""
        return self.task

    def load(self, split: str) -> Split:
        """Parse and check every row of one split; no image is decoded, but each must exist."""
        root = existing_root(self.root)
        if isinstance(self.labels, dict):
            check_split(f"csv_table {self.root}", split, list(self.labels), cuttable=True)
        labels = self.labels if isinstance(self.labels, str) else self.labels[split]
        path = inside(root, labels, self.follow_links, "data.labels")
        table = LabelTable(
            image_column=self.image_column,
            label_column=self.label_column,
            label_columns=self.label_columns,
            label_separator=self.label_separator,
            task=self.task,
            classes=self.classes,
            group_columns=self.group_columns,
            extra_columns=[self.split_column] if self.split_column else [],
            delimiter=self.delimiter,
            uncertain=self.uncertain,
        )
        problems = Problems()
        cells = table.cells(path, problems)
        if self.split_column:
            valid = list(dict.fromkeys(row[self.split_column].strip() for _, row in cells))
            check_split(f"{path}, column '{self.split_column}'", split, valid, cuttable=True)
            cells = [(line, row) for line, row in cells if row[self.split_column].strip() == split]
        folders = (
            None if self.images == "absolute" else [inside(root, name, self.follow_links, "data.images") for name in self.images]
        )
        samples = SampleList(ImageFinder(folders, self.image_suffix, ABSOLUTE), self.on_duplicate, problems)
        samples.extend(table.rows(path, cells, problems))
        whole = samples.split(split, self.classes, self.task, str(path))
        return _with_classes(whole, table, path)


def _with_classes(split: Split, table: LabelTable, path: Path) -> Split:
    from dataclasses import replace

    return replace(split, classes=table.class_names(path, split.targets.tolist() if table.label_column else []))
