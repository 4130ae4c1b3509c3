"""A smaller copy of a data set: every image decoded, resized and encoded once, with the same ids and splits."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from riftcli import files
from riftcli.console import Console
from riftcli.data.images import read_image
from riftcli.data.parallel import in_parallel
from riftcli.data.split import Split
from riftcli.data.splits import Splits, fingerprint
from riftcli.errors import DataError, Problems, StorageError, UsageError
from riftcli.protocols import UNKNOWN

SUFFIXES = {"jpeg": ".jpg", "png": ".png"}
SETTINGS, MANIFEST, LABELS = "settings.json", "manifest.csv", "labels.csv"
SECTION = "data.yaml"  # what reads the copy; written by whoever called


@dataclass(frozen=True)
class Encoding:
    """size: pixels of the shorter side, never enlarged; kind: jpeg | png; quality: of jpeg, without chroma subsampling."""

    size: int
    kind: str = "jpeg"
    quality: int = 95
    bit_depth: int | None = None

    @property
    def suffix(self) -> str:
        """What ids without it get."""
        return SUFFIXES[self.kind]

    def save(self, image: Image.Image, path: Path) -> tuple[str, int]:
        """Write one image, whole or not at all; (sha256, bytes)."""
        scale = self.size / min(image.size)
        if scale < 1:
            width, height = (max(1, round(side * scale)) for side in image.size)
            image = image.resize((width, height), Image.Resampling.BICUBIC)
        path.parent.mkdir(parents=True, exist_ok=True)
        options: dict[str, Any] = {"quality": self.quality, "subsampling": 0} if self.kind == "jpeg" else {}
        with files.replacing(path) as partial:
            image.save(partial, self.kind, **options)
            content = partial.read_bytes()
        return hashlib.sha256(content).hexdigest(), len(content)


@dataclass(frozen=True)
class _FromFile:
    """(file, target) -> (sha256, bytes), or what is wrong with it; picklable, for other processes."""

    encoding: Encoding

    def __call__(self, pair: tuple[Path, Path]) -> tuple[str, int] | str:
        try:
            return self.encoding.save(read_image(pair[0], self.encoding.bit_depth), pair[1])
        except DataError as error:
            return str(error)
        except OSError as error:
            raise StorageError(f"{pair[1]}: cannot be written ({error.strerror}); then give the same command") from error


def shrink(splits: Splits, out: Path, encoding: Encoding, console: Console, workers: int | None = None) -> dict[str, Any]:
    """Write `out` and return the data section that reads it, format csv_table. What an earlier call did is not done again.
    Ids stay as they are, but for the first slash of absolute ones.

    out/images/ID.jpg, manifest.csv (id, file, sha256, bytes, as each is done), labels.csv (at the end).
    Raises UsageError for a folder with something else in it, DataError for images that cannot be read: all others are done;
    StorageError where it cannot be written.
    """
    try:
        return _shrink(splits, out, encoding, console, workers)
    except OSError as error:
        raise StorageError(
            f"{error.filename or out}: cannot be written ({error.strerror}); then give the same command"
        ) from error


def _shrink(splits: Splits, out: Path, encoding: Encoding, console: Console, workers: int | None) -> dict[str, Any]:
    named = splits.named()
    if splits.train.task == "captions":
        raise UsageError("images with captions are not shrunk: only classes and labels can be written as a table")
    done = _begin(
        out, {**asdict(encoding), "samples": {name: fingerprint(split) + _state(split) for name, split in named.items()}}
    )
    places = {name: [_place(out, key, encoding.suffix) for key in split.ids] for name, split in named.items()}
    _check_places(named, places)
    problems = Problems()
    with files.open_append(out / MANIFEST) as file:
        writer = csv.writer(file)
        for name, split in named.items():
            missing = [i for i, path in enumerate(places[name]) if not _is_done(path, done.get(split.ids[i]))]
            with console.progress(f"shrinking {name}", len(missing)) as bar:
                for i, found in zip(missing, _encoded(split, missing, places[name], encoding, workers), strict=True):
                    bar.advance(1)
                    if isinstance(found, str):
                        problems.add(found)
                    else:
                        writer.writerow([split.ids[i], places[name][i].relative_to(out).as_posix(), *found])
                        file.flush()
    problems.raise_if_any()
    return _write_labels(out, named, encoding.suffix)


def _state(split: Split) -> str:
    """Of the files as they are: other pictures under the same names are another data set."""
    digest = hashlib.blake2b(digest_size=8)
    for path in split.paths or []:
        found = path.stat()
        digest.update(f"{found.st_size} {found.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _encoded(
    split: Split, missing: list[int], places: list[Path], encoding: Encoding, workers: int | None
) -> Iterator[tuple[str, int] | str]:
    if split.paths is not None:
        pairs = [(split.paths[i], places[i]) for i in missing]
        yield from in_parallel(_FromFile(encoding), pairs, workers)
        return
    for i in missing:
        yield encoding.save(split.read(i), places[i])


def _begin(out: Path, settings: dict[str, Any]) -> dict[str, int]:
    """id -> bytes of what is there already, of the same data at the same settings."""
    path, manifest = out / SETTINGS, out / MANIFEST
    if out.is_dir() and any(not entry.name.startswith(".") for entry in out.iterdir()) and not path.is_file():
        raise UsageError(f"{out}: holds something else; choose an empty folder")
    out.mkdir(parents=True, exist_ok=True)
    if path.is_file() and files.read_json(path) != settings:
        raise UsageError(f"{out}: was begun with other images or settings; choose another folder, or remove it")
    if not path.is_file():
        files.write_text(path, json.dumps(settings, indent=1))
    if not manifest.is_file():
        return {}
    with manifest.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.reader(file) if len(row) == 4 and len(row[2]) == 64 and row[3].isdecimal()]
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    files.write_text(manifest, text.getvalue())  # without a line that was cut off
    return {row[0]: int(row[3]) for row in rows}


def _is_done(path: Path, size: int | None) -> bool:
    return size is not None and path.is_file() and path.stat().st_size == size


def _place(out: Path, key: str, suffix: str) -> Path:
    """The file of an id, as csv_table finds it: with the suffix, unless it ends so. Absolute ids lie below, too."""
    name = key.lstrip("/")
    if ".." in Path(name).parts:
        raise DataError(f"id '{key}': leads out of its folder, so it has no place in another")
    return out / "images" / (name if name.lower().endswith(suffix) else name + suffix)


def _check_places(named: dict[str, Split], places: dict[str, list[Path]]) -> None:
    """Raise DataError for two images with one place."""
    seen: dict[Path, str] = {}
    for name, split in named.items():
        for key, path in zip(split.ids, places[name], strict=True):
            if seen.setdefault(path, key) != key:
                raise DataError(f"ids '{seen[path]}' and '{key}' would be one file, {path.name}; rename one")


def _write_labels(out: Path, named: dict[str, Split], suffix: str) -> dict[str, Any]:
    """labels.csv, and the data section that reads it."""
    train = named["train"]
    several = train.task == "multilabel"
    groups = [column for column in train.groups if all(column in split.groups for split in named.values())]
    odd = [name for name in [*train.classes, *groups] if name != name.strip()]
    if odd:
        raise DataError(f"class or column '{odd[0]}' begins or ends with a space, which a table loses; rename it")
    own = train.classes if several else ["label"]
    columns = [_free(column, {*own, *groups[:i]}) for i, column in enumerate(groups)]
    image, part = (_free(name, {*own, *columns}) for name in ("image", "split"))
    header = [image, part, *own, *columns]
    unknown = False
    with files.writing(out / LABELS) as file:
        writer = csv.writer(file)
        writer.writerow(header)
        for name, split in named.items():
            for i, key in enumerate(split.ids):
                target = split.targets[i]
                cells = [-1 if int(t) == UNKNOWN else int(t) for t in target] if several else [split.classes[int(target)]]
                unknown |= several and -1 in cells
                writer.writerow([key.lstrip("/"), name, *cells, *[split.groups[column][i] or "none" for column in groups]])
    section: dict[str, Any] = {"format": "csv_table", "root": str(out), "labels": LABELS, "split_column": part}
    section |= {"image_column": image, "images": ["images"], "image_suffix": suffix}
    section |= {"label_columns": train.classes, "task": "multilabel"} if several else {"label_column": "label"}
    if not several:
        section["classes"] = train.classes
    if unknown:
        section["uncertain"] = "ignore"
    if groups:
        section["group_columns"] = columns
    return section | {key: key if key in named else None for key in ("train", "val", "test")}


def _free(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "_"
    return name
