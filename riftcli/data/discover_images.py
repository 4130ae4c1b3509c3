"""Which column of a label table names images, and in which folders these lie."""

from __future__ import annotations

import os
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from riftcli.data.discovery import NamesNoImages, Table, split_words, words_of
from riftcli.data.folders import walk
from riftcli.data.images import EXTENSIONS
from riftcli.errors import DataError

NO_PICTURES = re.compile(r"mask|seg|annot|label|truth|_gt|heat", re.IGNORECASE)  # folders of images with the same names
IMAGE_NAMES = {"image", "images", "img", "file", "filename", "path", "id", "name", "photo", "picture", "isic"}
MOST_FILES = 300_000  # below the root, when names are sought


@dataclass(frozen=True)
class Images:
    """How a column names images. way: absolute | path (below root) | name | stem."""

    column: str
    way: str
    root: Path
    share: float


def files_below(root: Path) -> dict[str, list[tuple[str, str]]]:
    """Name in lower case, with and without its suffix -> (folder below root, suffix) of images with it; links are followed."""
    found: dict[str, list[tuple[str, str]]] = {}
    count = 0
    for folder, names in walk(root):
        place = os.path.relpath(folder, root)
        for name in names:
            stem, suffix = os.path.splitext(name)
            if suffix.lower() in EXTENSIONS:
                count += 1
                for key in {name.lower(), stem.lower()}:
                    found.setdefault(key, []).append((place, suffix))
        if count > MOST_FILES:
            break
    return found


def image_column(table: Table, root: Path, index: dict[str, list[tuple[str, str]]]) -> Images:
    """The column whose cells name most images, in whichever way."""
    best = Images("", "", root, 0.0)
    above, own = Path(os.path.abspath(root)).parent, os.path.basename(os.path.abspath(root))
    for column in table.header:
        cells = table.sample(column)
        if not cells or len(set(cells)) < max(2, 0.5 * len(cells)):
            continue
        known = [cell for cell in cells if cell.lower() in index]
        suffixed = sum(os.path.splitext(cell)[1].lower() in EXTENSIONS for cell in known)
        ways = {
            ("absolute", root): sum(cell.startswith("/") and os.path.isfile(cell) for cell in cells),
            ("path", root): sum("/" in cell and os.path.isfile(root / cell) for cell in cells),
            # CheXpert's table lies in the folder that its paths begin with
            ("path", above): sum(cell.startswith(f"{own}/") and os.path.isfile(above / cell) for cell in cells),
            ("name", root): suffixed,
            ("stem", root): len(known) - suffixed,
        }
        way, place = max(ways, key=ways.__getitem__)
        share = ways[way, place] / len(cells)
        found = Images(column, way, place, share)
        if (round(share, 2), *_called(table, column)) > (round(best.share, 2), *_called(table, best.column)):
            best = found
    if best.share < 0.5:
        raise NamesNoImages(f"{table.path}: no column names images below {root} {_instead(table, root)}")
    return best


def _called(table: Table, column: str) -> tuple[bool, bool]:
    """(it does not merely count rows, it is called like an image): which of two columns that name as many images is meant."""
    if column not in table.header:
        return False, False
    cells = [row[column] for row in table.rows]
    counts = any(cells == [str(i + start) for i in range(len(cells))] for start in (0, 1))
    return not counts, bool(set(words_of(column)) & IMAGE_NAMES)


def _instead(table: Table, root: Path) -> str:
    """What the table has instead of names, and what helps."""
    for column in table.header:
        cells = [cell for cell in table.sample(column) if cell.count("/") > 0]
        below = sum(os.path.isfile(root / cell.partition("/")[2]) for cell in cells)
        if cells and below > 0.5 * len(cells):
            first = cells[0].partition("/")[0]
            return f"as they stand: paths in column '{column}' begin with {first}/; call the folder {first}, not {root.name}"
    row = ", ".join(f"{key}={value[:30]}" for key, value in list(table.rows[0].items())[:6])
    return f"(looked for {', '.join(EXTENSIONS[:3])}, ...); its first row is {row}; give the folder that holds both"


def places_of(
    images: Images, cells: dict[str, list[str]], index: dict[str, list[tuple[str, str]]], facts: list[str]
) -> dict[str, Any]:
    """The fields that say where the images of all rows lie. cells: of every table, by its split.

    Raises DataError where tables of several splits have the same names in different folders: only paths tell these apart.
    """
    fields: dict[str, Any] = {} if images.column == "image" else {"image_column": images.column}
    if images.share < 1:
        facts.append(f"about {100 * (1 - images.share):.0f} % of the rows name an image that is not there")
    if images.way == "absolute":
        return {**fields, "images": "absolute"}
    if images.way == "path":
        return fields
    known = {key: [index[cell.lower()] for cell in own if cell.lower() in index] for key, own in cells.items()}
    chosen = {key: _covering([{place for place, _ in places} for places in own], key) for key, own in known.items()}
    folders = list(dict.fromkeys(place for own in chosen.values() for place in own))
    if folders != ["."]:
        fields["images"] = folders
    for key, own in known.items():
        for places in own:
            here = {place for place, _ in places}
            if _first(folders, here) != _first(chosen[key], here):
                raise DataError(
                    f"the tables of several splits have images with the same names in {', '.join(folders[:4])}; write their "
                    "paths into the tables, e.g. train/1.jpg"
                )
    found = [places for own in known.values() for places in own]
    several = Counter(
        place for places in found for place in {place for place, _ in places} - {_first(folders, {place for place, _ in places})}
    )
    if several:
        more = ", ".join(f"{count} also in {place}" for place, count in several.most_common(3))
        facts.append(f"images are taken from {', '.join(folders[:4])}; {more}")
    if images.way == "stem":
        suffixes = Counter(suffix for places in found for suffix in {suffix for place, suffix in places if place in folders})
        fields["image_suffix"] = suffixes.most_common(1)[0][0]
        if len(suffixes) > 1:
            facts.append(f"images have several suffixes: {', '.join(f'{n} {s}' for s, n in suffixes.most_common())}")
    return fields


def _first(folders: list[str], here: set[str]) -> str:
    return next(folder for folder in folders if folder in here)


def _covering(places: list[set[str]], split: str) -> list[str]:
    """Few folders that have all images of a split's table among them, those called so first, the one with most images first;
    folders of other splits, and masks with the same names, come last.
    """
    counts = Counter(place for one in places for place in one)

    def rank(place: str) -> tuple[Any, ...]:
        named = set().union(*(split_words(part) for part in Path(place).parts))
        other = bool(named) and split not in named and (split != "all" or "train" not in named)
        return (bool(NO_PICTURES.search(place)), other, -counts[place], place)

    order = sorted(counts, key=rank)
    chosen: list[str] = []
    left = places
    for place in order:
        without = [one for one in left if place not in one]
        if len(without) < len(left):
            chosen.append(place)
            left = without
    return chosen
