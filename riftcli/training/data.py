"""What a run reads: its splits and the retention sets, listed, sifted, decoded; and the batches of every epoch."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from riftcli import dist
from riftcli.console import Console
from riftcli.data.content import content_digest
from riftcli.data.copies import MOST, copies_between
from riftcli.data.kept_images import KeepingReader, KeptImages, KeptPart
from riftcli.data.leaks import COPIES, Leak, refuse_leaks
from riftcli.data.memory import free_memory
from riftcli.data.reading import sift, with_pixels
from riftcli.data.split import Split
from riftcli.data.splits import Splits, check_overlap, fingerprint, load_split, load_splits, query_and_bank
from riftcli.data.transforms import Preprocessing
from riftcli.errors import DataError
from riftcli.recipe.data_sources import EvalSet
from riftcli.recipe.image_sections import AugmentSection
from riftcli.recipe.recipe import Recipe
from riftcli.recipe.sections import EVAL_SETS
from riftcli.training.streams import TrainBatches


@dataclass(frozen=True)
class RunData:
    """The splits of the run, what is watched or looked at beside them, and the batches that it trains on."""

    splits: Splits
    retention: list[tuple[Split, Split | None]]  # (query, bank or None for leave-one-out)
    skipped: dict[str, list[str]]  # split -> ids of unreadable images that were left out
    reference: Split | None = None
    beside: dict[str, list[Split]] = field(default_factory=dict)  # key of `eval` -> its sets: zero_shot, shifted, captions
    kept: dict[str, KeptPart] = field(default_factory=dict)  # images in memory, of each stream that is trained on
    batches: TrainBatches | None = None  # once the network's preprocessing is known
    reference_batches: TrainBatches | None = None

    def looked_at(self, stream: str) -> Split:
        """The split that a regularizer on this stream looks at."""
        return self.splits.train if self.reference is None or stream == "task" else self.reference

    def fingerprints(self) -> dict[str, str]:
        """Of everything that a step depends on: what a resumed run must find again."""
        return {name: fingerprint(split) for name, split in self.everything().items()}

    def contents(self) -> dict[str, str]:
        """Digests of the images of the same splits."""
        return {name: content_digest(split) for name, split in self.everything().items()}

    @property
    def images(self) -> KeptImages | None:
        """Those that are kept in memory."""
        return next((part.images for part in self.kept.values()), None)

    def everything(self) -> dict[str, Split]:
        """Every split that the run reads, by name."""
        named = {**self.splits.named(), **self.evaluated()}
        return named if self.reference is None else {**named, "reference": self.reference}

    def evaluated(self) -> dict[str, Split]:
        """Splits that metrics are computed on: test, val, retention/0, retention/0/bank, zero_shot/0, ..."""
        found = {name: split for name, split in self.splits.named().items() if name != "train"}
        for i, (query, bank) in enumerate(self.retention):
            found[f"retention/{i}"] = query
            if bank is not None:
                found[f"retention/{i}/bank"] = bank
        for key, sets in self.beside.items():
            found |= {f"{key}/{i}": split for i, split in enumerate(sets)}
        return found


def list_data(recipe: Recipe, console: Console, accept: bool = False) -> RunData:
    """List all splits of a recipe and take out unreadable images as `input` says; collective. accept: a run that goes on, or is
    looked at again, keeps the data that it was begun with, leaks too.
    """
    data = recipe.data
    if not dist.is_main():
        dist.barrier()  # a source that downloads does so once, on rank 0
    splits = load_splits(data.source, data.train, data.val, data.test, data.rules)
    retention = [query_and_bank(other) for other in recipe.retention]
    sets = {key: [load_set(recipe, key, one, splits) for one in getattr(recipe, key)] for key in EVAL_SETS}
    reference, beside_overlap = load_reference(recipe, splits, retention, sets)
    splits = replace(splits, overlap={**splits.overlap, **beside_overlap})
    if dist.is_main():
        dist.barrier()
    copies = dist.broadcast_object(_copies(splits, console) if dist.is_main() else None)
    splits = replace(splits, leaks=(*splits.leaks, *copies))
    if not accept:
        refuse_leaks(splits.leaks, data.rules.allow_overlap)
    for pair, count in splits.overlap.items():
        console.warn(f"data.allow_overlap: {pair.replace('/', ' and ')} share {count} samples; the report says so")
    for leak in splits.leaks:
        _warn_of(leak, recipe, console)
    skipped: dict[str, list[str]] = {}

    def sifted(name: str, split: Split) -> Split:
        kept, bad = sift(split, recipe.input, console)
        if bad:
            skipped[name] = bad
        return kept

    sound: dict[str, Any] = {name: sifted(name, split) for name, split in splits.named().items()}
    kept = replace(splits, **sound)
    beside = []
    for i, (query, bank) in enumerate(retention):
        name = f"retention/{i}"
        beside.append((sifted(name, query), None if bank is None else sifted(f"{name}/bank", bank)))
    watched = {key: [sifted(f"{key}/{i}", one) for i, one in enumerate(own)] for key, own in sets.items() if own}
    return RunData(kept, beside, skipped, None if reference is None else sifted("reference", reference), watched)


def _copies(splits: Splits, console: Console) -> list[Leak]:
    """Files that are in two splits under other names."""
    named = splits.named()
    if sum(len(split.paths or []) for split in named.values()) > MOST:
        console.line(f"data: more than {MOST:,} files: not searched for copies between the splits (`rift data check` does)")
        return []
    return [Leak(first, second, COPIES, len(ids)) for (first, second), ids in copies_between(named).items()]


def _warn_of(leak: Leak, recipe: Recipe, console: Console) -> None:
    if leak.held:
        console.warn(f"data.allow_overlap: {leak.text}; the report says so")
    elif leak.by == COPIES:
        console.warn(f"{leak.text}, under other names: the result is not on unseen images (`rift data check` lists them)")
    elif leak.by != recipe.eval.group:  # groups that a metric compares are in every split on purpose
        console.warn(f"{leak.text}: the result is not on unseen {leak.by}s; data.val.group {leak.by} refuses that")


def load_set(recipe: Recipe, key: str, one: EvalSet, splits: Splits) -> Split:
    """A set below `eval`; raise DataError where it cannot be measured as that.

    Shifted sets have classes of the task, all or some; zero-shot sets one label per image; caption sets captions.
    """
    split, where = load_split(one.source, one.split), f"eval.{key} {one.name}, split '{one.split.name}'"
    if key == "captions":
        if split.captions is None:
            raise DataError(f"{where}: images without captions; use format captions")
        return split
    if split.task != "multiclass":
        raise DataError(f"{where}: needs one label per image, and this data is {split.task}")
    if key == "shifted":
        named = split.classes if split.members is None else [name for own in split.members for name in own]
        unknown = [name for name in named if name not in splits.train.classes]
        if unknown:
            raise DataError(
                f"{where}: {len(unknown)} of its {len(named)} classes are not of the task (e.g. '{unknown[0]}'); shifted "
                "sets have the task's classes, all or some; others belong below eval.zero_shot"
            )
        if one.source == recipe.data.source:
            check_overlap({"train": splits.train, "shifted": split}, recipe.data.rules.allow_overlap)
    return split


def load_reference(
    recipe: Recipe, splits: Splits, retention: list[tuple[Split, Split | None]], sets: dict[str, list[Split]]
) -> tuple[Split | None, dict[str, int]]:
    """(the images beside the task's, how many of them the run is evaluated on where `data.allow_overlap` admits that).

    Raises DataError for images of the validation, test or retention splits, or of a set below `eval`: what is kept would be
    measured on what was held.
    """
    wanted = recipe.reference
    if wanted is None:
        return None, {}
    split = load_split(wanted.source, wanted.split)
    named = replace(split, name=f"reference {split.name}")
    held: list[tuple[str, Split, Any]] = [(name, own, recipe.data) for name, own in splits.named().items() if name != "train"]
    for key, own_sets in sets.items():
        pairs = zip(own_sets, getattr(recipe, key), strict=True)
        held += [(f"{key}/{i}", own, section) for i, (own, section) in enumerate(pairs)]
    for i, (query, bank) in enumerate(retention):
        held += [(f"retention/{i}", own, recipe.retention[i]) for own in (query, bank) if own is not None]
    shared: dict[str, int] = {}
    for name, own, section in held:
        if wanted.source == section.source:
            found = check_overlap({"reference": named, name: own}, recipe.data.rules.allow_overlap)
        else:  # equal ids are other images, but a file is a file
            found = check_overlap({"reference": _by_file(named), name: _by_file(own)}, recipe.data.rules.allow_overlap)
        shared |= found
    return split, shared


def _by_file(split: Split) -> Split:
    """The split with ids that only equal files share."""
    paths = split.paths
    own = [f"{split.name}#{i}" for i in range(len(split))]
    return replace(split, ids=own if paths is None else [str(path.resolve()) for path in paths])


def read_pixels(data: RunData, recipe: Recipe, preprocessing: Preprocessing, console: Console, again: bool = True) -> RunData:
    """The same samples, read as `input` says: through the store of decoded images, in draft mode, or as they are.

    again: training images are read in every epoch, and are kept in memory for that. Collective.
    """

    def read(split: Split, augment: AugmentSection | None = None) -> Split:
        return with_pixels(split, recipe.input, preprocessing, console, augment)

    splits = data.splits
    ready: dict[str, Any] = {
        name: read(split, recipe.augment if name == "train" else None) for name, split in splits.named().items()
    }
    prepared = replace(
        data,
        splits=replace(splits, **ready),
        retention=[(read(query), None if bank is None else read(bank)) for query, bank in data.retention],
        reference=None if data.reference is None else read(data.reference, recipe.augment),
        beside={key: [read(split) for split in sets] for key, sets in data.beside.items()},
    )
    return _keep_images(prepared, recipe, console) if again else prepared


SHARE = 4  # one part in so many of the free memory is for images, and as much is left to others


def _keep_images(data: RunData, recipe: Recipe, console: Console) -> RunData:
    """The same samples; those that are trained on are decoded once, as far as `launch.image_memory` goes. Collective.

    What is augmented is kept as it was decoded, what is the same in every epoch as it is shown (ImageDataset).
    """
    several = recipe.train.epochs > 1
    splits = {"task": data.splits.train if several else None, "reference": data.reference}
    streams = {name: split for name, split in splits.items() if split is not None and split.paths is not None}
    decoded, wanted = not recipe.augment.off, recipe.launch.image_memory
    if not streams or (decoded and recipe.input.cache is not None):
        return data
    share = (free_memory() or 0) // SHARE
    most = share if wanted == "auto" else int(wanted * 1e9)
    images = KeptImages.of_machine(sum(map(len, streams.values())), most, share)
    if images is None:
        return data
    console.line(f"input: decoded images are kept in memory for the next epoch, {most / 1e9:.1f} GB at most")
    kept, first = {}, 0
    for name, split in streams.items():
        kept[name], first = KeptPart(images, first), first + len(split)
    read = {name: replace(split, read=KeepingReader(split.read, kept[name])) for name, split in streams.items() if decoded}
    return replace(
        data,
        splits=replace(data.splits, train=read.get("task", data.splits.train)),
        reference=read.get("reference", data.reference),
        kept=kept,
    )
