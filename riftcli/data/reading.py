"""Between the files of a split and the loop: unreadable images, bit depth, draft mode, the store of decoded images."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from riftcli import dist
from riftcli.console import Console
from riftcli.data.image_store import Decoding, ImageStore, file_state, stored_files, unreadable
from riftcli.data.images import FileReader
from riftcli.data.parallel import cores
from riftcli.data.split import Split
from riftcli.data.splits import Splits, load_retention, load_splits
from riftcli.data.transforms import Preprocessing
from riftcli.errors import DataError, Problems
from riftcli.recipe.sections import AugmentSection, InputSection, Recipe


@dataclass(frozen=True)
class Data:
    """Everything that is read: the splits of the run, and what is watched beside them."""

    splits: Splits
    retention: list[tuple[Split, Split | None]]  # (query, bank or None for leave-one-out)
    skipped: dict[str, list[str]]  # split -> ids of unreadable images that were left out


def load_data(recipe: Recipe, console: Console) -> Data:
    """List all splits of a recipe and sift them; collective."""
    data = recipe.data
    if not dist.is_main():
        dist.barrier()  # a source that downloads does so once, on rank 0
    splits = load_splits(data.source, data.train, data.val, data.test, data.rules)
    retention = [load_retention(other.source, other.train, other.test, other.rules) for other in recipe.retention]
    if dist.is_main():
        dist.barrier()
    for pair, count in splits.overlap.items():
        console.warn(f"data.allow_overlap: {pair.replace('/', ' and ')} share {count} samples; the report says so")
    skipped: dict[str, list[str]] = {}

    def sifted(name: str, split: Split) -> Split:
        kept, bad = sift(split, recipe.input, console)
        if bad:
            skipped[name] = bad
        return kept

    val = None if splits.val is None else sifted("val", splits.val)
    kept = replace(splits, train=sifted("train", splits.train), val=val, test=sifted("test", splits.test))
    beside = []
    for i, (query, bank) in enumerate(retention):
        name = f"retention/{i}"
        beside.append((sifted(name, query), None if bank is None else sifted(f"{name}/bank", bank)))
    return Data(kept, beside, skipped)


def decoded(data: Data, recipe: Recipe, preprocessing: Preprocessing, console: Console) -> Data:
    """The same samples, read as `input` says: through the store of decoded images, in draft mode, or as they are."""

    def read(split: Split, augment: AugmentSection | None = None) -> Split:
        return with_pixels(split, recipe.input, preprocessing, console, augment)

    splits = data.splits
    val = None if splits.val is None else read(splits.val)
    return replace(
        data,
        splits=replace(splits, train=read(splits.train, recipe.augment), val=val, test=read(splits.test)),
        retention=[(read(query), None if bank is None else read(bank)) for query, bank in data.retention],
    )


def sift(split: Split, settings: InputSection, console: Console) -> tuple[Split, list[str]]:
    """(split without unreadable images, their ids); raise DataError where they are not to be skipped, or too many.

    Collective: every rank reads its share, and all train on the same samples. Images that the store of decoded ones knows
    have been read before.
    """
    if split.paths is None or (settings.check_images == "exists" and settings.on_bad_image == "fail"):
        return split, []
    known = stored_files(settings.cache) if settings.cache else set()
    mine = [i for i in range(dist.rank(), len(split), dist.world_size()) if file_state(split.paths[i]) not in known]
    with console.progress(f"reading {split.name}", len(mine)) as bar:
        workers = max(1, cores() // dist.world_size())
        bad = unreadable([split.paths[i] for i in mine], settings.bit_depth, workers, bar.advance)
    parts = dist.gather_objects({mine[k]: text for k, text in bad.items()})
    found = dict(sorted(pair for part in parts for pair in part.items()))
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
    if split.paths is None or (settings.bit_depth is None and not settings.draft and settings.cache is None):
        return split
    short = needed_short_side(preprocessing, augment)
    if augment is not None and settings.cache_short_side and settings.cache:
        short = settings.cache_short_side
    if settings.cache is None:
        return replace(split, read=FileReader(split.paths, settings.bit_depth, short if settings.draft else None))
    decoding = Decoding(short, preprocessing.interpolation, settings.draft, settings.bit_depth)
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
