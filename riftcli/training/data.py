"""The splits of a run and what is watched beside them, listed, sifted and read as the recipe says."""

from __future__ import annotations

from dataclasses import dataclass, replace

from riftcli import dist
from riftcli.console import Console
from riftcli.data.reading import sift, with_pixels
from riftcli.data.split import Split
from riftcli.data.splits import Splits, load_retention, load_splits
from riftcli.data.transforms import Preprocessing
from riftcli.recipe.sections import AugmentSection, Recipe


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
