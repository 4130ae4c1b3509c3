"""Images with captions: Flickr8k's token file, a CSV, or the headerless TSV of CC3M."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal
from urllib.parse import urlparse

from riftcli.errors import DataError, Problems
from riftcli.images import EXTENSIONS, check_split, existing_root
from riftcli.label_table import read_csv, read_text
from riftcli.protocols import Split
from riftcli.sample_list import ImageFinder, LabelRow, SampleList


@dataclass(frozen=True)
class Captions:
    """Images with one or more captions each; no classes.

    labels: {split: caption file} below root; style: token (Flickr8k: `name.jpg#0<TAB>caption`) | csv (a header; image_column,
    caption_column, delimiter) | cc3m (`caption<TAB>url`, with or without a header; the image is the url's file name, or what
    img2dataset makes of row i: 00000/000000012.jpg).
    images: folders below root; lists: {split: file} with the image names of a split (Flickr_8k.trainImages.txt).
    max_missing: share of images that may be absent (links rot); they are left out.
    """

    root: str
    labels: dict[str, str]
    style: Literal["token", "csv", "cc3m"] = "csv"
    image_column: str = "image"
    caption_column: str = "caption"
    delimiter: str = ","
    images: list[str] = field(default_factory=lambda: ["."])
    lists: dict[str, str] = field(default_factory=dict)
    max_missing: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.max_missing < 1:
            raise ValueError("max_missing: must be in [0, 1)")

    def load(self, split: str) -> Split:
        """Group captions by image, in the order of their first appearance."""
        import numpy as np

        root = existing_root(self.root)
        check_split(f"captions {self.root}", split, list(self.labels))
        path, problems = root / self.labels[split], Problems()
        rows = {"token": self._token, "csv": self._csv, "cc3m": self._cc3m}[self.style](path, problems)
        wanted = _names(root / self.lists[split]) if split in self.lists else None
        captions: dict[str, list[str]] = defaultdict(list)
        first: dict[str, int] = {}
        for line, image, caption in rows:
            if wanted is not None and image not in wanted:
                continue
            if not caption.strip():
                problems.add(f"{path}:{line}: image '{image}' has an empty caption; fill it or remove the line")
            captions[image].append(caption.strip())
            first.setdefault(image, line)
        problems.raise_if_any()
        found, missing = self._present(root, path, first)
        if len(missing) > self.max_missing * len(first):
            line, name = missing[0]
            raise DataError(
                f"{path}:{line}: image '{name}' not found in {', '.join(str(root / f) for f in self.images)}; {len(missing)} of "
                f"{len(first)} images are missing; set data.max_missing: {min(0.99, len(missing) / len(first) + 0.01):.2f} to go "
                "on without them"
            )
        finder = ImageFinder([root / folder for folder in self.images])
        samples = SampleList(finder, "error", problems)
        samples.extend(LabelRow(path, first[image], file, 0) for image, file in found.items())
        whole = samples.split(split, [], "captions", str(path))
        return replace(whole, targets=np.zeros(len(found), dtype="int64"), captions=[captions[image] for image in found])

    def _present(self, root: Path, path: Path, first: dict[str, int]) -> tuple[dict[str, str], list[tuple[int, str]]]:
        """({image as named in the file: its file below an image folder}, [(line, name)] of those that are not there)."""
        found, missing = {}, []
        downloaded = self._downloaded(root) if self.style == "cc3m" else {}
        for image, line in first.items():
            names = [image] if self.style != "cc3m" else [Path(urlparse(image).path).name, downloaded.get(line, "")]
            there = [n for n in names if n and any((root / folder / n).is_file() for folder in self.images)]
            if there:
                found[image] = there[0]
            else:
                missing.append((line, names[0]))
        return found, missing

    def _downloaded(self, root: Path) -> dict[int, str]:
        """Line (from 1) -> what img2dataset stored: a shard's folder and a running number, with gaps where a link was dead."""
        header = 1 if _has_header(root / next(iter(self.labels.values()))) else 0
        files: dict[int, str] = {}
        for folder in self.images:
            for path in sorted((root / folder).glob("[0-9]*/[0-9]*")):
                if path.suffix.lower() in EXTENSIONS and path.stem.isdecimal():
                    files[int(path.stem) + 1 + header] = path.relative_to(root / folder).as_posix()
        return files

    def _token(self, path: Path, problems: Problems) -> list[tuple[int, str, str]]:
        rows = []
        for number, line in enumerate(read_text(path).splitlines(), 1):
            if not line.strip():
                continue
            name, tab, caption = line.partition("\t")
            image, mark, order = name.rpartition("#")
            if not tab or not mark or not order.isdecimal():
                problems.add(f"{path}:{number}: expected name.jpg#0, a tab and a caption, got '{line[:40]}'")
            else:
                rows.append((number, image, caption))
        return rows

    def _csv(self, path: Path, problems: Problems) -> list[tuple[int, str, str]]:
        header, lines = read_csv(path, self.delimiter)
        for column in (self.image_column, self.caption_column):
            if column not in header:
                raise DataError(
                    f"{path}:1: no column '{column}'; it has: {', '.join(header)}; "
                    "set data.image_column, data.caption_column and data.delimiter"
                )
        image, caption = header.index(self.image_column), header.index(self.caption_column)
        for number, cells in lines:
            if len(cells) != len(header):
                problems.add(f"{path}:{number}: {len(cells)} cells, the header has {len(header)}")
        return [(n, cells[image].strip(), cells[caption]) for n, cells in lines if len(cells) == len(header)]

    def _cc3m(self, path: Path, problems: Problems) -> list[tuple[int, str, str]]:
        rows = []
        for number, line in enumerate(read_text(path).splitlines(), 1):
            caption, tab, url = line.partition("\t")
            if not line.strip() or (number == 1 and _is_header(line)):
                continue
            if not tab or not url.strip():
                problems.add(f"{path}:{number}: expected a caption, a tab and a url, got '{line[:40]}'")
            else:
                rows.append((number, url.strip(), caption))
        return rows


def _is_header(line: str) -> bool:
    return line.strip().lower() == "caption\turl"


def _has_header(path: Path) -> bool:
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        return _is_header(file.readline())


def _names(path: Path) -> set[str]:
    return {line.strip() for line in read_text(path).splitlines() if line.strip()}
