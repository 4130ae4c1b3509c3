"""MedFM (MedFMC 2023): chest radiographs, colon pathology patches, endoscopy images."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from riftcli.data.folders import check_split, existing_root, inside
from riftcli.data.label_table import LabelTable, numbered_lines
from riftcli.data.sample_list import ImageFinder, LabelRow, OnDuplicate, SampleList
from riftcli.data.split import Split
from riftcli.errors import DataError, Problems
from riftcli.protocols import Task as TaskKind

Part = Literal["chest", "colon", "endo"]
Protocol = Literal["official", "challenge", "paper"]

CHEST = [
    "pleural_effusion", "nodule", "pneumonia", "cardiomegaly", "hilar_enlargement", "fracture_old",
    "fibrosis", "aortic_calcification", "tortuous_aorta", "thickened_pleura", "TB", "pneumothorax",
    "emphysema", "atelectasis", "calcification", "pulmonary_edema", "increased_lung_markings", "elevated_diaphragm",
    "consolidation",
]  # fmt: skip


@dataclass(frozen=True)
class _Kind:
    """One of the three tasks: its classes, how its lists and tables look, and which images belong together."""

    task: TaskKind
    classes: list[str]
    arity: int  # label cells on a line of a text list
    separator: str
    published: str  # the table with all labels, published after the challenge
    label_column: str | None
    group: str
    group_of: str  # regular expression on the file name


_KINDS: dict[str, _Kind] = {
    # Nothing in a chest file name is known to name the patient. A colon slide is the text before `-lv1`: the slide_id of the
    # tables is longer and names a region of it.
    "chest": _Kind("multilabel", CHEST, 19, ",", "chestdr_published_19d.csv", None, "", ""),
    "colon": _Kind("multiclass", ["negative", "tumor"], 1, " ", "colonpath_published_2.csv", "tumor", "slide", r"(.+?)-lv[0-9]"),
    "endo": _Kind(
        "multilabel", ["ulcer", "erosion", "polyp", "tumor"], 4, " ", "Endo_published_4d.csv", None, "study", r"(.+)_[^_]+$"
    ),
}

# Three disjoint parts make every protocol: `trainval` (979 chest images), `open`, the part of the test set whose labels the
# challenge gave out for training (1,161), and `hidden` (2,708). The papers' counts are trainval + open to train on and
# open + hidden to test on.
_PROTOCOLS: dict[str, dict[str, list[str]]] = {
    "official": {"train": ["trainval"], "test": ["open", "hidden"]},
    "challenge": {"train": ["trainval", "open"], "test": ["hidden"]},
    "paper": {"train": ["trainval", "open"], "test": ["open", "hidden"]},
}


@dataclass(frozen=True)
class MedFm:
    """MedFM, one of its three tasks, as downloaded (MedFMC_train/, MedFMC_val/, MedFMC_trainval_annotation/) or as its code
    base arranges it (<task>/images and the lists trainval.txt, test_WithLabel.txt, test_WithoutLabel.txt).

    task: chest (19 findings, multi-label) | colon (tumor or not) | endo (4 findings, multi-label).
    protocol: official (train trainval, test everything else: no image in both) | challenge (train trainval and the open part of
    the test set, test the hidden part) | paper (the counts the papers print: train trainval + open, test open + hidden; 1,161
    chest, 3,296 colon, 881 endo images are then in both, so it also needs allow_overlap: true).
    lists: {split: file} below root instead, e.g. a few-shot list; images: folders below root instead of those of the layout.
    on_duplicate: error | first | keep, for an image listed twice with one label (the official few-shot lists do).
    follow_links: also take files outside root that links or names lead to.
    """

    root: str
    task: Part
    protocol: Protocol = "official"
    lists: dict[str, str] = field(default_factory=dict)
    images: list[str] = field(default_factory=list)
    on_duplicate: OnDuplicate = "error"
    follow_links: bool = False

    @property
    def known_task(self) -> TaskKind:
        """Known before anything is read."""
        return _KINDS[self.task].task

    def load(self, split: str) -> Split:
        """Rows of the lists or tables that the protocol names; unlabelled ones look their labels up in the published table."""
        root = existing_root(self.root)
        check_split(f"medfm {self.task}, protocol {self.protocol}", split, [*dict.fromkeys([*self.lists, "train", "test"])])
        kind, problems = _KINDS[self.task], Problems()
        samples = SampleList(ImageFinder(self._folders(root)), self.on_duplicate, problems)
        sources = self._sources(root, split)
        for path, only, unlabelled in sources:
            rows = [row for row in _rows(path, kind, problems, unlabelled_ok=unlabelled) if only is None or row.id in only]
            samples.extend(self._labelled(root, path, rows, kind, problems))
        found = samples.split(split, kind.classes, kind.task, str(sources[0][0]))
        if not kind.group:
            return found
        groups = [match[1] if (match := re.match(kind.group_of, name)) else name for name in found.ids]
        return replace(found, groups={kind.group: groups})

    def _folders(self, root: Path) -> list[Path]:
        if self.images:
            return [inside(root, name, self.follow_links, "data.images") for name in self.images]
        bases = [root / "MedFMC_train" / self.task, root / "MedFMC_val" / self.task, root / self.task]
        bases += [root / "MedFMC" / self.task]
        found = [base / name for base in bases for name in ("images", "image") if (base / name).is_dir()]
        if not found:
            raise DataError(
                f"{root}: no image folder for task '{self.task}'; expected MedFMC_train/{self.task}/images and "
                f"MedFMC_val/{self.task}/images, or {self.task}/images; or set data.images"
            )
        hidden = root / "MedFMC_val" / self.task
        if (root / "MedFMC_train" / self.task).is_dir() and not hidden.is_dir():
            found.append(hidden / "images")  # a missing image then names the archive that was not unpacked
        return found

    def _sources(self, root: Path, split: str) -> list[tuple[Path, set[str] | None, bool]]:
        """[(list or table, ids to keep or None for all, whether its labels may be empty)] of a split."""
        if split in self.lists:
            return [(inside(root, self.lists[split], self.follow_links, "data.lists"), None, False)]
        parts = _PROTOCOLS[self.protocol][split]
        annotation = root / "MedFMC_trainval_annotation" / self.task
        if (annotation / "trainval.txt").is_file():  # as downloaded
            lists = {"trainval": annotation / "trainval.txt", "test": annotation / "test.txt"}
            if parts == ["trainval"]:
                return [(lists["trainval"], None, False)]
            if parts == ["open", "hidden"]:
                return [(lists["test"], None, False)]
            if parts == ["trainval", "open"]:
                return [(root / "MedFMC_train" / self.task / f"{self.task}_train.csv", None, False)]
            return [(root / "MedFMC_val" / self.task / f"{self.task}_val.csv", None, True)]
        downloaded = root / "MedFMC_train" / self.task / f"{self.task}_train.csv"
        if downloaded.is_file():  # before the challenge ended: only its own training labels
            if parts == ["trainval", "open"]:
                return [(downloaded, None, False)]
            raise DataError(
                f"{root}: no MedFMC_trainval_annotation/{self.task}/trainval.txt; protocol '{self.protocol}' needs the labels "
                f"published after the challenge for split '{split}': download MedFMC_trainval_annotation beside MedFMC_train"
            )
        names = {"trainval": "trainval.txt", "open": "test_WithLabel.txt", "hidden": "test_WithoutLabel.txt"}
        bases = [root / self.task, root / "MedFMC" / self.task, root / "data_anns" / "MedFMC" / self.task]
        base = next((b for b in bases if (b / names[parts[0]]).is_file()), None)
        if base is None:
            raise DataError(
                f"{root}: no label lists for task '{self.task}', split '{split}'; expected {self.task}/{names[parts[0]]} or "
                f"MedFMC_trainval_annotation/{self.task}/; or set data.lists"
            )
        return [(base / names[part], None, part == "hidden") for part in parts]

    def _labelled(self, root: Path, path: Path, rows: list[LabelRow], kind: _Kind, problems: Problems) -> Iterator[LabelRow]:
        """Rows with their labels; those without take them from the table that was published later."""
        if all(row.target is not None for row in rows):
            yield from rows
            return
        published = self._published(root, path, kind, problems)
        for row in rows:
            target = row.target if row.target is not None else published.get(row.id)
            if target is None:
                problems.add(f"{row.where}: image '{row.id}' has no label here and none in {kind.published}")
            else:
                yield replace(row, target=target)

    def _published(self, root: Path, path: Path, kind: _Kind, problems: Problems) -> dict[str, Any]:
        for folder in (root / "MedFMC_trainval_annotation", root, root / self.task):
            if (folder / kind.published).is_file():
                table = folder / kind.published
                return {row.id: row.target for row in _rows(table, kind, problems)}
            listed = folder / self.task / "test.txt"
            if listed.is_file():
                return {row.id: row.target for row in _rows(listed, kind, problems)}
        raise DataError(
            f"{path}: an unlabelled split: its labels were published after the challenge in {kind.published}; put that file "
            f"into {root}, or test on the labelled part with --set 'data.lists={{test: {self.task}/test_WithLabel.txt}}'"
        )


def _rows(path: Path, kind: _Kind, problems: Problems, unlabelled_ok: bool = False) -> Iterator[LabelRow]:
    """The rows of a table (.csv) or of a text list."""
    if path.suffix != ".csv":
        yield from _list_rows(path, kind, problems, unlabelled_ok)
        return
    table = LabelTable(
        image_column="img_id",
        label_column=kind.label_column,
        label_columns=[] if kind.label_column else kind.classes,
        classes=kind.classes if kind.label_column else [],
        task=kind.task,
        unlabelled_ok=unlabelled_ok,
        unlabelled_hint="an unlabelled split: its labels were published after the challenge",
    )
    yield from table.rows(path, table.cells(path, problems), problems)


def _list_rows(path: Path, kind: _Kind, problems: Problems, unlabelled_ok: bool) -> Iterator[LabelRow]:
    """`name labels`: a name may hold spaces (every colon name does) and dots, so a line is read from the right."""
    for number, line in numbered_lines(path):
        name, labels = _divided(line.strip(), kind)
        if labels is None and unlabelled_ok and _looks_like_image(line.strip()):
            yield LabelRow(path, number, line.strip(), None)
        elif labels is None:
            problems.add(f"{path}:{number}: {_list_problem(line.strip(), kind)}")
        else:
            target = labels[0] if kind.task == "multiclass" else labels
            yield LabelRow(path, number, name, target)


def _divided(line: str, kind: _Kind) -> tuple[str, tuple[int, ...] | None]:
    if kind.separator == ",":
        name, _, cells = line.rpartition(" ")
        values = cells.split(",")
    else:
        name, *values = line.rsplit(" ", kind.arity)
    fits = len(values) == kind.arity and all(value in ("0", "1") for value in values) and _looks_like_image(name)
    return name, tuple(map(int, values)) if fits else None


def _looks_like_image(name: str) -> bool:
    return name.lower().endswith((".png", ".jpg", ".jpeg"))


def _list_problem(line: str, kind: _Kind) -> str:
    if _looks_like_image(line):
        return f"'{line}' has no label: an unlabelled list (test_WithoutLabel?) cannot be scored"
    form = f"{kind.arity} labels 0 or 1" + (" joined by commas" if kind.separator == "," else "")
    if kind.arity == 1:
        form = "one label 0 or 1"
    else:
        form += " joined by spaces" if kind.separator == " " else ""
    tail = re.search(r"\.(?:png|jpg|jpeg) (.*)$", line, re.IGNORECASE)
    found = f"'{tail[1][:50]}'" if tail else f"'{line[:50]}'"
    return f"expected an image name and {form}, got {found}; is this the list of another task?"
