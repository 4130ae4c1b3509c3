"""What a folder or a table holds, found by looking: the `data` section of a recipe, and what a person should know about it."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from riftcli import catalog
from riftcli.data.discover_table import infer_table, tables_in
from riftcli.data.discovery import Discovery, split_of, with_cuts
from riftcli.data.folders import ignored_text, images_below, unusual
from riftcli.data.split import Split
from riftcli.errors import DataError

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


def discover(path: Path, answers: dict[str, str] | None = None) -> Discovery:
    """Look at a folder of images, a table, or a folder with both; raise DataError where nothing there is known.

    answers: key of a question -> the answer; without one the likeliest is taken.
    """
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    if path.is_file():
        return with_cuts(infer_table(path.parent, [path], answers or {}))
    for name, fields in LAYOUTS:
        found = _layout(path, name, fields)
        if found is not None:
            return with_cuts(found)
    tables = tables_in(path)
    folder = _class_folder(path)
    if tables:  # folders beside a table that names their images are no classes
        try:
            return with_cuts(infer_table(path, tables, answers or {}))
        except DataError:
            if folder is None:
                raise
    if folder is not None:
        found = _class_folders(folder)
        beside = [f"tables beside the class folders are not read: {', '.join(t.name for t in tables)}"] if tables else []
        return with_cuts(replace(found, facts=[*found.facts, *beside]))
    images, _ = images_below(path)
    if images:
        raise DataError(
            f"{path}: {len(images)} images and nothing that says what they show; put them into one folder per class, or beside a "
            "table (CSV) with their names and labels"
        )
    raise DataError(f"{path}: no images, no class folders, no table (CSV) in it; which folder holds the data?")


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


def _class_folder(path: Path) -> Path | None:
    """The folder that holds split or class folders: `path`, or the only one in it (an archive that was unpacked)."""
    for _ in range(3):
        inner = [p for p in sorted(path.iterdir()) if p.is_dir() and not p.name.startswith(".") and p.name != "__MACOSX"]
        if len(inner) != 1 or split_of(inner[0].name):
            holds = [p for p in inner if any(images_below(p))]
            return path if len(holds) > 1 or (holds and split_of(holds[0].name)) else None
        path = inner[0]
    return None


def _class_folders(root: Path) -> Discovery:
    """Class folders, below split folders or not; images by patient where they are DICOM files, else by folder or name."""
    inner = [p.name for p in sorted(root.iterdir()) if p.is_dir() and not p.name.startswith(".") and p.name != "__MACOSX"]
    splits = {key: name for name in inner if (key := split_of(name))}
    if "train" not in splits and splits:
        raise DataError(f"{root}: split folders ({', '.join(inner)}), none to train on; expected {root}/train/<class>/<image>")
    given = splits or {"train": "all"}
    top = root if not splits else root / splits["train"]
    images, ignored = images_below(top)
    facts = [
        f"class folders in {root}" + (f" below {', '.join(splits.values())}" if splits else ", without splits"),
        f"files: {', '.join(f'{n} {suffix}' for suffix, n in Counter(p.suffix.lower() for p in images).most_common())}",
    ]
    if unusual(ignored):
        facts.append(f"not read: {ignored_text(unusual(ignored))}")
    fields: dict[str, Any] = {"root": str(root)}
    group = _grouping(images, top)
    if group:
        fields["group_by"] = group
    return Discovery("image_folder", fields, given, facts, (group,) if group else ())


def _grouping(images: list[Path], folder: Path) -> str | None:
    """What keeps images together that show the same patient or slide; None where nothing tells."""
    from riftcli.data.datasets.image_folder import group_names
    from riftcli.data.dicom import SUFFIXES

    candidates = ["folder", "name"]
    if images and all(path.suffix.lower() in SUFFIXES for path in images):
        candidates = ["patient", "study"]
    for how in candidates:
        try:
            names = group_names(images, how, folder)
        except DataError:
            continue
        count = len(set(names))
        # a name that nearly every image has alone, or that hardly any two differ in, says nothing
        if 10 <= count <= 0.7 * len(images) or (how in ("patient", "study") and 5 <= count < len(images)):
            return how
    return None
