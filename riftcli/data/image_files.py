"""Images that a user names, without labels: files, and folders of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from riftcli.data.folders import ignored_text, images_below, total
from riftcli.data.images import EXTENSIONS, FileReader
from riftcli.data.split import Split
from riftcli.errors import DataError
from riftcli.recipe.image_sections import InputSection


def image_split(paths: Sequence[Path], reading: InputSection, classes: Sequence[str] = ()) -> Split:
    """The named files and all images below the named folders, in order, as a split without targets; raise DataError."""
    files: list[Path] = []
    ignored: list[dict[str, int]] = []
    for path in paths:
        path = path.expanduser()
        if path.is_dir():
            found, others = images_below(path)
            if not found:
                there = f"; there are {ignored_text(others)}" if others else ""
                raise DataError(f"{path}: no image in this folder (looked for {', '.join(sorted(EXTENSIONS))}){there}")
            files += found
            ignored.append(others)
        elif path.is_file():
            files.append(path)
        else:
            raise DataError(f"{path}: no such file or folder")
    files = list(dict.fromkeys(files))
    ids = [str(file) for file in files]
    targets = np.zeros(len(files), dtype=np.int64)
    return Split("images", ids, targets, list(classes), FileReader(files, reading.bit_depth), paths=files, ignored=total(ignored))
