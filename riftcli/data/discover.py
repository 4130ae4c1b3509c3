"""What a folder or a table holds, found by looking: the `data` section of a recipe, and what a person should know about it."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from riftcli import catalog
from riftcli.data.datasets.image_folder import group_names, same_inside
from riftcli.data.discover_table import infer_table, tables_in
from riftcli.data.discovery import Discovery, NamesNoImages, split_words, with_cuts
from riftcli.data.folders import OutsideRoot, holds_images, ignored_text, images_below, split_of, unusual, visible_folders
from riftcli.data.images import EXTENSIONS
from riftcli.data.split import Split
from riftcli.data.splits import load_split
from riftcli.errors import DataError
from riftcli.recipe.data_sources import SplitSpec

# Formats with a layout of their own, most particular first; MedFM is asked for each of its tasks.
LAYOUTS: list[tuple[str, dict[str, Any]]] = [
    ("isic2018", {}),
    ("aptos2019", {}),
    ("medfm", {"task": "chest"}),
    ("medfm", {"task": "colon"}),
    ("medfm", {"task": "endo"}),
    ("cub200", {}),
    ("iwildcam", {}),
    ("fmow", {}),
]
DEPTH = 4  # folders with nothing in them but one folder, as archives have when they are unpacked
FOLDERS_PER_CLASS = 3  # of folders within classes, so that each split can have one
NO_CLASS = re.compile(r"((train|test|val)_?)?(images?|masks?|pictures|photos|labels?|annotations?|segmentations?)", re.IGNORECASE)
GROUPS_PER_CLASS = 5  # with fewer, what files have in common names their class rather than a patient or slide


def discover(path: Path, answers: dict[str, str] | None = None) -> Discovery:
    """Look at a folder of images, a table, or a folder with both; raise DataError where nothing there is known.

    answers: key of a question -> the answer; without one the likeliest is taken.
    """
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    try:
        return _with_links(_discover(path, answers))
    except OSError as error:
        raise DataError(f"{error.filename}: cannot be read ({error.strerror})") from error


def _with_links(found: Discovery) -> Discovery:
    """What was seen behind links that lead out of the data root is read only where the recipe says so, which it then does."""
    source = catalog.component("data", found.format)(**found.fields)
    try:
        for split in dict.fromkeys(name for name in found.splits.values() if isinstance(name, str)):
            load_split(source, SplitSpec(split))
    except OutsideRoot:
        fact = "some files lie outside the data root, behind links or names: follow_links"
        return replace(found, fields={**found.fields, "follow_links": True}, facts=[found.facts[0], fact, *found.facts[1:]])
    except DataError:  # told when the recipe's data are listed
        pass
    return found


def _discover(path: Path, answers: dict[str, str] | None) -> Discovery:
    if path.is_file():
        return with_cuts(infer_table(path.parent, [path], answers or {}))
    root = _descend(path)
    for name, fields in LAYOUTS:
        found = _layout(root, name, fields)
        if found is not None:
            return with_cuts(found)
    tables, classes = tables_in(root), _has_class_folders(root)
    if any(split_of(p.name) == "train" for p in visible_folders(root)) and classes:
        aside = [t for t in tables if split_words(t.stem) & {"val", "test"} and "train" not in split_words(t.stem)]
    else:
        aside = []
    if len(aside) < len(tables):  # folders beside a table that names their images are no classes
        try:
            return with_cuts(infer_table(root, tables, answers or {}))
        except NamesNoImages:
            if not classes:
                raise
    if classes:
        found = _class_folders(root)
        beside = [f"tables beside the class folders are not read: {', '.join(t.name for t in tables)}"] if tables else []
        return with_cuts(replace(found, facts=[found.facts[0], *beside, *found.facts[1:]]))
    images, _ = images_below(root)
    if images:
        raise DataError(
            f"{root}: {len(images)} images and nothing that says what they show; put them into one folder per class, or beside a "
            "table (CSV) with their names and labels"
        )
    raise DataError(f"{root}: no images, no class folders, no table (CSV) in it; which folder holds the data?")


def _descend(path: Path) -> Path:
    """The folder below `path` where something begins, past folders that hold one folder and nothing else to look at."""
    for _ in range(DEPTH):
        inner = visible_folders(path)
        alone = len(inner) == 1 and not split_of(inner[0].name) and not tables_in(path)
        if not alone or not visible_folders(inner[0]) and not tables_in(inner[0]):
            return path
        if any(p.suffix.lower() in EXTENSIONS for p in path.iterdir()):
            return path
        path = inner[0]
    return path


def _layout(root: Path, name: str, fields: dict[str, Any]) -> Discovery | None:
    source = catalog.component("data", name)(root=str(root), **fields)
    try:
        train: Split = source.load("train")
    except DataError:
        return None
    splits: dict[str, Any] = {"train": "train"}
    for key in ("val", "test"):
        try:
            source.load(key)
        except DataError:
            continue
        splits[key] = key
    what = " ".join([name, *fields.values()])
    groups = tuple(column for column in train.groups if len(set(train.groups[column])) < len(train))
    return Discovery(name, {"root": str(root), **fields}, splits, [f"laid out as {what}"], groups)


def _has_class_folders(root: Path) -> bool:
    """True where class folders, or split folders with some, lie in `root`."""
    holds = [p for p in visible_folders(root) if holds_images(p)]
    return len(holds) > 1 or any(split_of(p.name) for p in holds)


def _class_folders(root: Path) -> Discovery:
    """Class folders, below split folders or not; images by patient where they are DICOM files, else by folder or name."""
    inner = visible_folders(root)
    named = ", ".join(p.name for p in inner[:6]) + ", ..." * (len(inner) > 6)
    splits: dict[str, Any] = {}
    for p in inner:
        key = split_of(p.name)
        if key:  # several of one kind are joined
            splits[key] = f"{splits[key]}+{p.name}" if key in splits else p.name
    if not splits and all(NO_CLASS.fullmatch(p.name) for p in inner):
        raise DataError(
            f"{root}: folders of images ({named}) and nothing that says what they show; a table with labels is missing"
        )
    if splits and "train" not in splits:
        raise DataError(f"{root}: split folders ({named}), none to train on; expected {root}/train/<class>/<image>")
    same = [] if splits else same_inside(inner)
    if same:
        raise DataError(
            f"{root}: its folders ({named}) all hold the same ones ({', '.join(same[:6])}): they look like splits or folds, not "
            f"like classes; call the one to train on {root}/train"
        )
    top = root / splits["train"].split("+")[0] if splits else root
    images, ignored = images_below(top)
    facts = [f"class folders in {root}" + (f" below {', '.join(splits.values())}" if splits else ", without splits")]
    if unusual(ignored):
        facts.append(f"not read: {ignored_text(unusual(ignored))}")
    facts.append(f"files: {ignored_text(Counter(p.suffix.lower() for p in images))}")
    fields: dict[str, Any] = {"root": str(root)}
    group = _grouping(images, top, facts)
    if group:
        fields["group_by"] = group
    return Discovery("image_folder", fields, splits or {"train": "all"}, facts, (group,) if group else ())


def _grouping(images: list[Path], folder: Path, facts: list[str]) -> str | None:
    """What keeps images together that show the same patient or slide; None where nothing tells."""
    from riftcli.data.dicom import SUFFIXES

    candidates = ["folder", "name"]
    if images and all(path.suffix.lower() in SUFFIXES for path in images):
        candidates = ["patient", "study"]
    classes = [path.relative_to(folder).parts[0] for path in images]
    for how in candidates:
        try:
            names = group_names(images, how, folder)
        except DataError as error:
            if how == "patient":
                facts.insert(1, f"not kept whole by patient: {error}")
            continue
        pairs = set(zip(classes, names, strict=True))
        count, per_class = len(set(names)), Counter(of for of, _ in pairs)
        if how in ("patient", "study"):
            if 1 < count < len(images):
                return how
        elif how == "folder":
            if count <= len(pairs) / 2 or count == len(images):
                continue  # names that classes have in common are no patients: 40X, 100X
            if min(per_class.values()) >= FOLDERS_PER_CLASS:
                return how
            facts.insert(1, "folders within the classes are not kept whole, for a class has only one or two: see data.group_by")
            return None
        # a name that nearly every image has alone says nothing; one that a class has alone is the class (Abyssinian_12.jpg)
        elif count <= 0.7 * len(images) and min(per_class.values(), default=0) >= GROUPS_PER_CLASS:
            return how
    return None
