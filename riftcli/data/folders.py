"""Checks of folders and files that data sources share."""

from __future__ import annotations

import functools
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from riftcli.data.images import EXTENSIONS
from riftcli.data.paths import PathsBelow, texts
from riftcli.errors import DataError, Problems, did_you_mean

_IMAGES = frozenset(EXTENSIONS)
_USUAL = (*EXTENSIONS, *(suffix.upper() for suffix in EXTENSIONS))
SPLITS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}  # what people call them
FOLLOW = "put it below, or set follow_links: true of this data source where you trust whoever made it"
COMPANIONS = (".csv", ".db", ".html", ".ini", ".json", ".jsonl", ".log", ".md", ".txt", ".tsv", ".xml", ".yaml", ".yml")


def images_below(folder: Path) -> tuple[list[Path], dict[str, int]]:
    """(images below a folder, sorted; suffix -> number of other files there). Hidden files and folders are neither."""
    names, _, ignored = names_below(folder)
    return [folder / name for name in names], ignored


def names_below(folder: Path) -> tuple[list[str], list[str], dict[str, int]]:
    """(names of the images below a folder relative to it, in the order of their paths; those that are links; suffix -> number of
    other files there).

    Every folder is read once, and no image is looked at. Hidden files and folders are neither.
    """
    images: list[str] = []
    linked: list[str] = []
    ignored, inner, start = Counter[str](), False, len(os.path.join(folder, ""))
    for place, names, links in _scan(folder):
        prefix = os.path.join(place, "")[start:]
        linked += [prefix + name for name in names if name in links] if links else []
        inner = inner or bool(prefix)
        plain = [name for name in names if name.endswith(_USUAL)]  # a loop of C, and most often all of them
        images += [prefix + name for name in plain] if prefix else plain
        others = [name for name in names if not name.endswith(_USUAL)] if len(plain) < len(names) else []
        for name in others:
            stem, dot, suffix = name.rpartition(".")
            kind = f".{suffix.lower()}" if dot and stem and suffix else ""
            if kind in _IMAGES:
                images.append(prefix + name)
            elif os.path.isfile(os.path.join(place, name)):
                ignored[kind or "no suffix"] += 1
    # a path is ordered by its parts: a/b comes before a-b
    images.sort(key=_parts if inner else None)
    return images, [name for name in linked if os.path.splitext(name)[1].lower() in _IMAGES], dict(ignored)


def _parts(name: str) -> list[str]:
    return name.split("/")


def walk(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """(folder, names of its files) for a folder and all below, links followed once; nothing hidden or left by an archiver."""
    return ((place, names) for place, names, _ in _scan(folder))


def _scan(folder: Path | str) -> Iterator[tuple[str, list[str], set[str]]]:
    """The same, with the names of the files that are links; a folder that cannot be read has none, as for os.walk."""
    seen: set[str] = set()
    left = [os.fspath(folder)]
    while left:
        place = left.pop()
        real = os.path.realpath(place)
        if real in seen:  # a link back up
            continue
        seen.add(real)
        names, links, inner = [], set(), []
        try:
            with os.scandir(place) as entries:
                for entry in entries:
                    name = entry.name
                    if name[0] == "." or name == "__MACOSX":
                        continue
                    if entry.is_file(follow_symlinks=False):  # nearly all
                        names.append(name)
                    elif _is_folder(entry):
                        inner.append(name)
                    else:
                        names.append(name)
                        if entry.is_symlink():
                            links.add(name)
        except OSError:
            continue
        yield place, names, links
        left += [os.path.join(place, name) for name in sorted(inner, reverse=True)]


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """What a link leads to is looked at; one that leads in a circle, or through a file, leads to none."""
    return os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()


def visible_folders(folder: Path) -> list[Path]:
    """The folders right in a folder, sorted; no hidden ones and none that an archiver left."""
    with os.scandir(folder) as entries:
        names = [e.name for e in entries if e.name[0] != "." and e.name != "__MACOSX" and _is_folder(e)]
    return [folder / name for name in sorted(names)]


def holds_images(folder: Path) -> bool:
    """True where any image lies below a folder; looks no further than the first."""
    return any(os.path.splitext(name)[1].lower() in EXTENSIONS for _, names in walk(folder) for name in names)


def split_of(name: str) -> str | None:
    """`train`, `val` or `test` for what people call them; None for other names."""
    return next((key for key, names in SPLITS.items() if name.lower() in names), None)


def ignored_text(ignored: dict[str, int]) -> str:
    """`12 .dcm, 3 .gif`, most frequent first."""
    return ", ".join(f"{count} {suffix}" for suffix, count in sorted(ignored.items(), key=lambda pair: (-pair[1], pair[0])))


def unusual(ignored: dict[str, int]) -> dict[str, int]:
    """Those that may be images which somebody expected to be read: not the lists and notes that lie beside images."""
    return {suffix: count for suffix, count in ignored.items() if suffix not in (*COMPANIONS, "no suffix")}


def total(parts: Iterable[dict[str, int]]) -> dict[str, int]:
    """Sums of counts."""
    return dict(sum((Counter(part) for part in parts), Counter()))


def check_exist(paths: Iterable[Path]) -> None:
    """Raise DataError naming the files that are missing or links to nowhere."""
    problems = Problems()
    for path in texts(paths):
        if not os.path.isfile(path):
            what = "a link to nowhere" if os.path.islink(path) else "image not found"
            problems.add(f"{path}: {what}; fetch it again or take it out of the list")
    problems.raise_if_any()


class OutsideRoot(DataError):
    """A link or a name that leads out of the folder of a data source."""


def inside(root: Path, name: str, follow_links: bool, key: str) -> Path:
    """A file or folder below root, by a recipe's name for it; raise OutsideRoot where name or link lead elsewhere."""
    path, home = root / name, os.path.realpath(root)
    real = os.path.realpath(path)
    if follow_links or real == home or real.startswith(f"{home.rstrip(os.sep)}{os.sep}"):
        return path
    raise OutsideRoot(f"{path}: {key} leads out of the data root, to {real}; {FOLLOW}")


def check_inside(paths: Iterable[Path], root: str) -> None:
    """Raise OutsideRoot naming the files that links lead out of root. Of paths that were listed it is known which are links: no
    other file is looked at.
    """
    home = os.path.realpath(Path(root).expanduser()).rstrip(os.sep) + os.sep
    real_folder = functools.cache(os.path.realpath)
    problems = Problems()
    for path in _suspects(paths, home) if isinstance(paths, PathsBelow) else texts(paths):
        folder, name = os.path.split(path)
        real = real_folder(folder)
        if os.path.islink(path):
            real, name = os.path.split(os.path.realpath(path))
        if not f"{real.rstrip(os.sep)}{os.sep}".startswith(home):
            problems.add(f"{path}: leads out of the data root, to {os.path.join(real, name)}; {FOLLOW}")
    problems.raise_if_any(OutsideRoot)


def _suspects(paths: PathsBelow, home: str) -> Iterator[str]:
    """The paths that are links, or that lie in a folder which is not below home."""
    last, below = None, True
    for name in paths.names:
        inner = name.rpartition("/")[0]
        if inner != last:
            last, below = inner, (os.path.realpath(os.path.join(paths.root, inner)) + os.sep).startswith(home)
        if not below or name in paths.links:
            yield paths.text(name)


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


def check_split(source: str, split: str, valid: list[str], cuttable: bool = False) -> None:
    """Raise DataError for a split that the source does not have. cuttable: a part of the training split would do as well."""
    if split in valid:
        return
    own = cuttable and split in ("test", "val") and "train" in valid
    remedy = f"; or cut it from the training split: --set 'data.{split}={{fraction: 0.2}}'" if own else ""
    raise DataError(f"{source}: no split '{split}'{did_you_mean(split, valid)}; it has: {', '.join(valid) or 'none'}{remedy}")
