"""Checks of folders and files that data sources share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from riftcli.data.images import EXTENSIONS
from riftcli.errors import DataError, Problems, did_you_mean

if TYPE_CHECKING:
    pass


def check_exist(paths: list[Path]) -> None:
    """Raise DataError naming the files that are missing or links to nowhere."""
    problems = Problems()
    for path in paths:
        if not path.is_file():
            what = "a link to nowhere" if path.is_symlink() else "image not found"
            problems.add(f"{path}: {what}; fetch it again or take it out of the list")
    problems.raise_if_any()


def check_no_loose_images(folder: Path, remedy: str) -> None:
    """Raise DataError for images beside class folders, which would otherwise be ignored without a word."""
    loose = sorted(p.name for p in folder.iterdir() if p.suffix.lower() in EXTENSIONS and p.is_file() and p.name[0] != ".")
    if loose:
        raise DataError(f"{folder}: {len(loose)} images lie beside the class folders (e.g. {loose[0]}); {remedy}")


def existing_root(root: str) -> Path:
    """The data folder, `~` expanded; raise DataError when it is missing."""
    path = Path(root).expanduser()
    if not path.exists():
        raise DataError(f"{root}: no such data folder (looked in {Path.cwd()}); set root, e.g. --set data.root=/path/to/data")
    if not path.is_dir():
        raise DataError(f"{root}: the data root is not a folder")
    return path


def check_split(source: str, split: str, valid: list[str]) -> None:
    """Raise DataError for a split that the source does not have."""
    if split not in valid:
        raise DataError(f"{source}: no split '{split}'{did_you_mean(split, valid)}; it has: {', '.join(valid) or 'none'}")
