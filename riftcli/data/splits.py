"""From a data source to the train, validation and test splits of a run, and what must hold between them."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from riftcli.data.classes import with_classes
from riftcli.data.folders import check_inside, total
from riftcli.data.holdout import hold_out, limit
from riftcli.data.leaks import Leak, group_leaks
from riftcli.data.paths import texts
from riftcli.data.split import DataSource, Split, read_pixels
from riftcli.errors import DataError, UsageError
from riftcli.recipe.data_sources import DataSection, SplitRules, SplitSpec


@dataclass(frozen=True)
class Splits:
    """The splits; classes and task agree, and no sample is in two of them unless `overlap` counts it.

    overlap: "train/test" -> shared samples, where that was allowed; leaks: groups and copies of files in two splits.
    """

    train: Split
    val: Split | None
    test: Split | None
    overlap: dict[str, int] = field(default_factory=dict)
    leaks: tuple[Leak, ...] = ()

    @property
    def admitted(self) -> dict[str, int]:
        """What reports say of it: shared samples, and images of groups that should have been whole."""
        return self.overlap | {leak.key: leak.images for leak in self.leaks if leak.held}

    @property
    def reported_as(self) -> str:
        """What the result of a run is measured on: `test`, or `val` where there is no test split."""
        return "val" if self.test is None else "test"

    @property
    def reported(self) -> Split:
        """That split."""
        return self.named()[self.reported_as]

    def named(self) -> dict[str, Split]:
        """Name -> split, for those that there are."""
        pairs = {"train": self.train, "val": self.val, "test": self.test}
        return {name: split for name, split in pairs.items() if split is not None}


def load_splits(
    source: DataSource, train: SplitSpec, val: SplitSpec | None, test: SplitSpec | None, rules: SplitRules = SplitRules()
) -> Splits:
    """Load and cut all splits; raise DataError when they contradict each other, UsageError when nothing is left to measure on."""
    if val is None and test is None:
        raise UsageError(
            "data.test is null and there is no data.val: nothing would be measured; hold out a share, e.g. "
            "--set 'data.val={fraction: 0.2}', or cross-validate with --folds 5"
        )
    found = cut(source, train, val, test)
    for key, spec in (("val", val), ("test", test)):
        if spec is not None and not spec.held_out:
            found[key] = load_split(source, spec)
    for key in found.keys() - {"train"}:
        found[key] = with_classes(found["train"].classes, found[key], rules.allow_missing_classes)
    splits = Splits(found["train"], found.get("val"), found.get("test"))
    held = [spec.group for spec in (val, test) if spec is not None and spec.group]
    overlap = check_overlap(splits.named(), rules.allow_overlap)
    return replace(splits, overlap=overlap, leaks=group_leaks(splits.named(), held))


def cut(source: DataSource, train: SplitSpec, val: SplitSpec | None, test: SplitSpec | None) -> dict[str, Split]:
    """`train`, and what is held out of its split: first the test split, of all its samples, so that neither the run's seed nor
    train.limit changes it; then validation, of what is left.
    """
    found: dict[str, Split] = {}
    if test is not None and test.held_out:
        whole, found["test"] = hold_out(load_split(source, replace(train, limit=None)), test, "test")
        whole = whole if train.limit is None else limit(whole, train.limit, train.seed)
    else:
        whole = load_split(source, train)
    if val is not None and val.held_out:
        whole, found["val"] = hold_out(whole, val)
    return {"train": whole, **found}


def query_and_bank(data: DataSection) -> tuple[Split, Split | None]:
    """(the images that are looked for, those that are searched) of a set; a query split that is cut from training is not in the
    bank. Raises DataError where there is not one label per image.
    """
    if data.test is not None and not data.test.held_out:
        return load_retention(data.source, data.train, data.test, data.rules)
    splits = load_splits(data.source, data.train, data.val, data.test, data.rules)
    _check_one_label(splits.reported)
    return splits.reported, splits.train


def load_retention(
    source: DataSource, bank: SplitSpec, query: SplitSpec, rules: SplitRules = SplitRules()
) -> tuple[Split, Split | None]:
    """(query, bank) of a set that is not trained on; the same split twice means leave-one-out, and the bank is None.

    Raises DataError when the two share samples (an image would vote for itself) or are not one label per image.
    """
    queries = load_split(source, query)
    _check_one_label(queries)
    if bank == query:
        return queries, None
    samples = load_split(source, bank)
    queries = with_classes(samples.classes, queries, rules.allow_missing_classes)
    check_overlap({"bank": samples, "query": queries}, rules.allow_overlap)
    return queries, samples


def _check_one_label(queries: Split) -> None:
    if queries.task != "multiclass":
        raise DataError(f"retention, split '{queries.name}': kNN needs one label per image, and this data is {queries.task}")


def load_split(source: DataSource, spec: SplitSpec) -> Split:
    """One split, or several joined by `+`, limited if asked."""
    parts = [source.load(name) for name in spec.name.split("+")]
    split = parts[0] if len(parts) == 1 else _joined(spec.name, parts)
    if len(split) == 0:
        raise DataError(f"split '{spec.name}' is empty")
    if not getattr(source, "follow_links", True) and getattr(source, "images", None) != "absolute":
        check_inside(split.paths or [], getattr(source, "root", "."))
    twice = [name for name, count in Counter(split.classes).items() if count > 1]
    if twice:
        raise DataError(f"split '{spec.name}': {len(twice)} class names stand for two classes (e.g. '{twice[0]}')")
    return split if spec.limit is None else limit(split, spec.limit, spec.seed)


def _joined(name: str, parts: list[Split]) -> Split:
    """Several splits as one, e.g. train+val as the bank of a kNN."""
    for part in parts[1:]:
        with_classes(parts[0].classes, part, allow_missing=False)
    for i, part in enumerate(parts):
        for other in parts[i + 1 :]:
            shared = shared_samples(part, other)
            if shared:
                why = "a split cannot be joined with itself" if part.name == other.name else "leave one of them out"
                raise DataError(
                    f"splits '{part.name}' and '{other.name}' share {len(shared)} samples (e.g. {min(shared)}): {why}"
                )
    common = set(parts[0].groups).intersection(*(part.groups for part in parts))
    return replace(
        parts[0],
        name=name,
        ids=[i for part in parts for i in part.ids],
        targets=np.concatenate([part.targets for part in parts]),
        read=_Joined([part.read for part in parts], [len(part) for part in parts]),
        groups={key: [value for part in parts for value in part.groups[key]] for key in sorted(common)},
        paths=None if any(part.paths is None for part in parts) else [path for part in parts for path in part.paths or []],
        captions=None if parts[0].captions is None else [texts for part in parts for texts in part.captions or []],
        ignored=total(part.ignored for part in parts),
    )


class _Joined:
    """Reads image i of several splits in a row; picklable, for data workers."""

    def __init__(self, readers: list[Any], lengths: list[int]) -> None:
        self.readers, self.starts = readers, np.cumsum([0, *lengths])

    def __call__(self, i: int) -> Any:
        read, own = self._place(i)
        return read(own)

    def pixels(self, i: int) -> Any:
        return read_pixels(*self._place(i))

    def _place(self, i: int) -> tuple[Any, int]:
        part = int(np.searchsorted(self.starts, i, side="right")) - 1
        return self.readers[part], i - int(self.starts[part])


def shared_samples(one: Split, other: Split) -> list[str]:
    """Ids of `one` that `other` has too: by id, or as the same file behind another name (links)."""
    ids = set(other.ids)
    found = [name for name in one.ids if name in ids]
    if found or one.paths is None or other.paths is None:
        return found
    files = set(_file_ids(other))
    return [name for name, file in zip(one.ids, _file_ids(one), strict=True) if file in files]


def _file_ids(split: Split) -> Iterable[tuple[int, int]]:
    for path in texts(split.paths or []):
        try:
            status = os.stat(path)
        except OSError:
            yield (-1, hash(path))  # gone since it was listed: reading it will say so
        else:
            yield status.st_dev, status.st_ino


def check_overlap(splits: dict[str, Split], allow: bool) -> dict[str, int]:
    """Shared samples of every pair that has some; raise DataError unless that is allowed."""
    found = {}
    names = list(splits)
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            shared = shared_samples(splits[first], splits[second])
            if shared and not allow:
                raise DataError(
                    f"splits '{splits[first].name}' and '{splits[second].name}' share {len(shared)} samples "
                    f"(e.g. {min(shared)}): the result would not be on unseen data; take them out of one, or set "
                    "data.allow_overlap: true, which writes the number into every report"
                )
            if shared:
                found[f"{first}/{second}"] = len(shared)
    return found


def fingerprint(split: Split) -> str:
    """sha256 over (id, target) in order: makes it visible when two runs used different samples."""
    digest = hashlib.sha256()
    for name, target in zip(split.ids, split.targets.tolist(), strict=True):
        digest.update(f"{name}\t{target}\n".encode())
    return f"sha256:{digest.hexdigest()}"
