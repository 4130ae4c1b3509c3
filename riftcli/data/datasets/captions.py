"""Images with captions: Flickr8k's token file, a CSV, COCO's JSON, or the headerless TSV of CC3M."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar, Literal
from urllib.parse import urlparse

from riftcli.data.folders import check_split, existing_root, inside
from riftcli.data.images import EXTENSIONS
from riftcli.data.label_table import numbered_lines, read_csv, read_text
from riftcli.data.sample_list import ImageFinder, LabelRow, SampleList
from riftcli.data.split import Split
from riftcli.errors import DataError, Problems
from riftcli.protocols import Task


@dataclass(frozen=True)
class Captions:
    """Images with one or more captions each; no classes.

    labels: {split: caption file} below root; style: token (Flickr8k: `name.jpg#0<TAB>caption`) | csv (a header; image_column,
    caption_column, delimiter) | coco (captions_val2017.json: images by number, annotations with captions) | cc3m
    (`caption<TAB>url`, with or without a header; the image is the url's file name, or what img2dataset makes of row i:
    00000/000000012.jpg).
    images: {split: folder below root}, or one folder for all splits; lists: {split: file} with the image names of a split
    (Flickr_8k.trainImages.txt). max_missing: share of images that may be absent (links rot); they are left out and counted.
    follow_links: also take files outside root that links or names lead to.
    """

    known_task: ClassVar[Task] = "captions"

    root: str
    labels: dict[str, str]
    style: Literal["token", "csv", "coco", "cc3m"] = "csv"
    image_column: str = "image"
    caption_column: str = "caption"
    delimiter: str = ","
    images: dict[str, str] | str = "."
    lists: dict[str, str] = field(default_factory=dict)
    max_missing: float = 0.0
    follow_links: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.max_missing < 1:
            raise ValueError("max_missing: must be in [0, 1)")
        if isinstance(self.images, str) and self.style == "cc3m" and len(self.labels) > 1:
            raise ValueError("images: each split of style cc3m has rows of its own, so give {split: folder}")
        if isinstance(self.images, dict) and set(self.labels) - set(self.images):
            raise ValueError(f"images: no folder for split '{min(set(self.labels) - set(self.images))}'")

    def load(self, split: str) -> Split:
        """Group captions by image, in the order of their first appearance."""
        import numpy as np

        root = existing_root(self.root)
        check_split(f"captions {self.root}", split, list(self.labels))
        path, problems = inside(root, self.labels[split], self.follow_links, "data.labels"), Problems()
        images = self.images if isinstance(self.images, str) else self.images[split]
        folder = inside(root, images, self.follow_links, "data.images")
        rows = {"token": _token, "csv": self._csv, "coco": _coco, "cc3m": _cc3m}[self.style](path, problems)
        wanted = None
        if split in self.lists:
            listed = inside(root, self.lists[split], self.follow_links, "data.lists")
            wanted = {line.strip() for _, line in numbered_lines(listed)}
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
        named = _downloaded_names(path, folder, first) if self.style == "cc3m" else {image: image for image in first}
        samples = SampleList(ImageFinder([folder]), None, problems)
        missing = [(line, image) for image, line in first.items() if not _there(folder, named[image])]
        if len(missing) > self.max_missing * len(first):
            line, image = missing[0]
            share = len(missing) / len(first)
            remedy = f"set data.max_missing: {share + 0.01:.2f} to go on without them" if share < 0.9 else "check data.images"
            raise DataError(
                f"{path}:{line}: image '{image}' not found in {folder}; {len(missing)} of {len(first)} images are missing; "
                + remedy
            )
        absent = {image for _, image in missing}
        present = [image for image in first if image not in absent]
        samples.extend(LabelRow(path, first[image], named[image], 0) for image in present)
        whole = samples.split(split, [], "captions", str(path))
        texts = [captions[image] for image in present]
        return replace(whole, targets=np.zeros(len(texts), dtype="int64"), captions=texts, left_out=len(missing))

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


def _there(folder: Path, name: str) -> bool:
    try:
        return bool(name) and (folder / name).is_file()
    except OSError:  # a url of a thousand letters is no file name
        return False


def _downloaded_names(path: Path, folder: Path, first: dict[str, int]) -> dict[str, str]:
    """url -> file below the folder: the url's own file name, else the running number that img2dataset gave its row.

    A number has gaps where a link was dead, and a shard's folder in front.
    """
    header = 1 if numbered_lines(path)[0][1].strip().lower() == _HEADER else 0
    numbered: dict[int, str] = {}
    for file in sorted(folder.glob("[0-9]*/[0-9]*")):
        if file.suffix.lower() in EXTENSIONS and file.stem.isdecimal():
            name = file.relative_to(folder).as_posix()
            if int(file.stem) in numbered:
                row = int(file.stem)
                raise DataError(f"{folder}: {numbered[row]} and {name} both claim row {row}; keep one download")
            numbered[int(file.stem)] = name
    own = {url: _file_name(url) for url in first}
    taken = Counter(own.values())
    return {
        url: own[url] if taken[own[url]] == 1 and _there(folder, own[url]) else numbered.get(line - 1 - header, "")
        for url, line in first.items()
    }


def _file_name(url: str) -> str:
    try:
        return Path(urlparse(url).path).name
    except ValueError:
        return ""


_HEADER = "caption\turl"


def _token(path: Path, problems: Problems) -> list[tuple[int, str, str]]:
    rows = []
    for number, line in numbered_lines(path):
        name, tab, caption = line.partition("\t")
        image, mark, order = name.rpartition("#")
        if not tab or not mark or not order.isdecimal():
            problems.add(f"{path}:{number}: expected name.jpg#0, a tab and a caption, got '{line[:40]}'")
        else:
            rows.append((number, image, caption))
    return rows


def _coco(path: Path, problems: Problems) -> list[tuple[int, str, str]]:
    """Captions in the order of the file; the number of an annotation stands for its line."""
    try:
        found = json.loads(read_text(path))
        names = {image["id"]: image["file_name"] for image in found["images"]}
        annotations = [(note["image_id"], note["caption"]) for note in found["annotations"]]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: not COCO's captions (images with id and file_name, annotations): {error!r}") from error
    rows = []
    for number, (image, caption) in enumerate(annotations, 1):
        if image not in names:
            problems.add(f"{path}: annotation {number} is of image {image}, which is not among its images")
        else:
            rows.append((number, names[image], str(caption)))
    return rows


def _cc3m(path: Path, problems: Problems) -> list[tuple[int, str, str]]:
    rows = []
    for number, line in numbered_lines(path):
        caption, tab, url = line.partition("\t")
        if number == 1 and line.strip().lower() == _HEADER:
            continue
        if not tab or not url.strip():
            problems.add(f"{path}:{number}: expected a caption, a tab and a url, got '{line[:40]}'")
        else:
            rows.append((number, url.strip(), caption))
    return rows
