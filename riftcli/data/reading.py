"""Between the files of a split and the loop: unreadable images, bit depth, draft mode, the store of decoded images."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from riftcli import dist
from riftcli.console import Console
from riftcli.data.folders import ignored_text, unusual
from riftcli.data.image_store import Decoding, ImageStore, file_states, stored_files, unreadable
from riftcli.data.images import EXTENSIONS, FileReader
from riftcli.data.parallel import cores_of_rank
from riftcli.data.paths import take
from riftcli.data.split import Split
from riftcli.data.transforms import Preprocessing
from riftcli.errors import DataError, Problems
from riftcli.recipe.image_sections import AugmentSection, InputSection


def sift(split: Split, settings: InputSection, console: Console) -> tuple[Split, list[str]]:
    """(split without unreadable images, their ids); raise DataError where they are not to be skipped, or too many.

    Collective: every rank reads its share, and all train on the same samples. Images that the store of decoded ones knows
    have been read before.
    """
    if settings.check_images == "exists" and settings.on_bad_image == "fail":
        return split, []
    found = bad_images(split, settings, console)
    if not found:
        return split, []
    if settings.on_bad_image == "fail" or len(found) > settings.max_bad * len(split):
        problems = Problems()
        for text in found.values():
            problems.add(text)
        if settings.on_bad_image == "skip":
            share = f"{len(found)} of {len(split)} images of split '{split.name}' are unreadable"
            problems.lines.insert(0, f"{share}, more than input.max_bad {settings.max_bad}: mend them or raise it")
        problems.raise_if_any()
    ids = [split.ids[i] for i in found]
    console.warn(f"split '{split.name}': {len(ids)} unreadable images are left out: {', '.join(ids[:5])}")
    kept = split.take(i for i in range(len(split)) if i not in found)
    if len(kept) == 0:
        raise DataError(f"split '{split.name}': no readable image is left")
    return kept, ids


def bad_images(split: Split, settings: InputSection, console: Console) -> dict[int, str]:
    """Position -> what is wrong, of every image that cannot be read; collective: every rank reads its share."""
    if split.paths is None:
        return {}
    known = stored_files(settings.cache) if settings.cache else set()
    mine = list(range(dist.rank(), len(split), dist.world_size()))
    if known:
        states = file_states(take(split.paths, mine), missing=b"")  # one that is not there is judged with the others
        mine = [i for i, state in zip(mine, states, strict=True) if state not in known]
    with console.progress(f"reading {split.name}", len(mine)) as bar:
        workers = max(1, cores_of_rank())
        bad = unreadable(list(take(split.paths, mine)), settings.bit_depth, workers, bar.advance)
    parts = dist.gather_objects({mine[k]: text for k, text in bad.items()})
    return dict(sorted(pair for part in parts for pair in part.items()))


def print_ignored(where: str, ignored: dict[str, int], console: Console) -> None:
    """Files beside the images, by suffix: a warning where they may be images that somebody expected to be read."""
    expected = unusual(ignored)
    if expected:
        console.warn(f"{where}: {ignored_text(expected)} files are ignored; images are {', '.join(EXTENSIONS)}")
    elif ignored:
        console.line(f"{where}: {ignored_text(ignored)} files beside the images are ignored")


def with_pixels(
    split: Split,
    settings: InputSection,
    preprocessing: Preprocessing,
    console: Console,
    augment: AugmentSection | None = None,
) -> Split:
    """The split, read as the recipe says. Without `augment` its images only meet the evaluation transform.

    Every process calls this; the first one to come fills the store.
    """
    resize = settings.resize_of(augment)
    plain = settings.bit_depth is None and not settings.draft and settings.cache is None
    if split.paths is None or (plain and resize == "pil"):
        return split
    short = needed_short_side(preprocessing, augment)
    if augment is not None and settings.cache_short_side and settings.cache:
        short = settings.cache_short_side
    if settings.cache is None:
        least = short if settings.draft else None
        return replace(split, read=FileReader(split.paths, settings.bit_depth, least, tensors=resize == "tensor"))
    decoding = Decoding(short, preprocessing.interpolation, settings.draft, settings.bit_depth, resize)
    with console.progress(f"decoding {split.name}", len(split)) as bar:
        store = ImageStore(settings.cache, decoding)
        reader: Any = store.reader(split.paths, bar.advance)
    console.line(f"input: {split.name}, {len(split)} decoded images with a shorter side of {short} px in {store.folder}")
    return replace(split, read=reader)


def needed_short_side(preprocessing: Preprocessing, augment: AugmentSection | None = None) -> int:
    """Pixels of the shorter side below which a transform would have to enlarge."""
    evaluation = math.floor(preprocessing.size / preprocessing.crop_pct)
    if augment is None or augment.crop_min_area == 1:
        return evaluation
    return max(evaluation, math.ceil(preprocessing.size / math.sqrt(augment.crop_min_area)))
