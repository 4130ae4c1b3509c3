"""From a data source to the train, validation and test splits of a run: limits, hold-out, and what must hold between them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from riftcli.errors import DataError
from riftcli.protocols import Dataset, Split, SplitSpec


@dataclass(frozen=True)
class Splits:
    """The three splits; classes and task agree, and no sample is in two of them."""

    train: Split
    val: Split | None
    test: Split


def load_splits(source: Dataset, train: SplitSpec, val: SplitSpec | None, test: SplitSpec) -> Splits:
    """Load and cut all splits; raise DataError when they contradict each other."""
    whole = load_split(source, train)
    val_split = None
    if val is not None and val.fraction is not None:
        whole, val_split = hold_out(whole, val)
    elif val is not None:
        val_split = load_split(source, val)
    splits = Splits(whole, val_split, load_split(source, test))
    for other in (splits.val, splits.test):
        if other is not None:
            check_same_classes(splits.train.classes, other)
            _check_disjoint(splits.train, other)
    if splits.val is not None:
        _check_disjoint(splits.val, splits.test)
    return splits


def load_retention(source: Dataset, bank: SplitSpec, query: SplitSpec) -> tuple[Split, Split | None]:
    """(query, bank) of a set that is not trained on; the same split twice means leave-one-out, and the bank is None.

    Raises DataError when the two share samples (an image would vote for itself) or are not one label per image.
    """
    queries = load_split(source, query)
    if queries.task != "multiclass":
        raise DataError(f"retention, split '{queries.name}': kNN needs one label per image, and this data is {queries.task}")
    if bank == query:
        return queries, None
    samples = load_split(source, bank)
    check_same_classes(samples.classes, queries)
    _check_disjoint(samples, queries)
    return queries, samples


def load_split(source: Dataset, spec: SplitSpec) -> Split:
    """One split, limited if asked."""
    split = source.load(spec.name)
    if len(split) == 0:
        raise DataError(f"split '{spec.name}' is empty")
    return split if spec.limit is None else limit(split, spec.limit, spec.seed)


def limit(split: Split, count: int, seed: int) -> Split:
    """`count` samples in their old order, classes in proportion (multi-label: at random)."""
    if count >= len(split):
        return split
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(split))
    if split.task == "multiclass":
        # Walk the classes side by side, so that every prefix holds them in proportion.
        position = np.empty(len(split))
        for label in np.unique(split.targets):
            members = order[split.targets[order] == label]
            position[members] = (np.arange(len(members)) + 0.5) / len(members)
        order = order[np.argsort(position[order], kind="stable")]
    return split.take(np.sort(order[:count]))


def hold_out(split: Split, spec: SplitSpec) -> tuple[Split, Split]:
    """(rest, held-out share), stratified by class, or with whole groups kept together when `spec.group` is set."""
    assert spec.fraction is not None
    held = _held_groups(split, spec) if spec.group else _held_stratified(split, spec.fraction, spec.seed)
    rest = np.setdiff1d(np.arange(len(split)), held)
    if len(held) == 0 or len(rest) == 0:
        raise DataError(
            f"data.val.fraction {spec.fraction}: {len(split)} samples leave {len(rest)} to train and {len(held)} to validate"
        )
    return split.take(rest), split.take(held, name="val")


def _held_stratified(split: Split, fraction: float, seed: int) -> np.ndarray:
    if split.task == "multilabel":
        count = round(len(split) * fraction)
        return np.sort(np.random.default_rng(seed).permutation(len(split))[:count])
    return np.sort(_positions(split, limit(split, round(len(split) * fraction), seed)))


def _positions(whole: Split, part: Split) -> np.ndarray:
    index = {name: i for i, name in enumerate(whole.ids)}
    return np.asarray([index[name] for name in part.ids], dtype=int)


def _held_groups(split: Split, spec: SplitSpec) -> np.ndarray:
    from sklearn.model_selection import GroupShuffleSplit

    if spec.group not in split.groups:
        known = ", ".join(split.groups) or "none; list the column in the data source's group_columns"
        raise DataError(f"data.val.group '{spec.group}': split '{split.name}' has no such group; it has: {known}")
    groups = split.groups[spec.group]
    if len(set(groups)) < 2:
        raise DataError(f"data.val.group '{spec.group}': all samples are in one group; there is nothing to hold out")
    splitter = GroupShuffleSplit(n_splits=1, test_size=spec.fraction, random_state=spec.seed)
    return np.sort(next(splitter.split(np.zeros(len(split)), groups=groups))[1])


def check_same_classes(train_classes: list[str], other: Split) -> None:
    """Raise DataError unless both splits have the same classes in the same order."""
    if other.classes == train_classes:
        return
    missing = [c for c in train_classes if c not in other.classes]
    extra = [c for c in other.classes if c not in train_classes]
    if not missing and not extra:
        raise DataError(
            f"split '{other.name}': same classes as in training but in another order "
            f"({', '.join(other.classes[:5])}...); fix the order with data.classes"
        )
    raise DataError(
        f"split '{other.name}': classes differ from training: missing {missing[:5] or 'none'}, unknown {extra[:5] or 'none'}; "
        "every split needs the same classes"
    )


def _check_disjoint(train: Split, other: Split) -> None:
    shared = set(train.ids) & set(other.ids)
    if shared:
        raise DataError(
            f"splits '{train.name}' and '{other.name}' share {len(shared)} samples (e.g. {min(shared)}): "
            "the result would not be on unseen data"
        )


def fingerprint(split: Split) -> str:
    """sha256 over (id, target) in order: makes it visible when two runs used different samples."""
    digest = hashlib.sha256()
    for name, target in zip(split.ids, split.targets.tolist(), strict=True):
        digest.update(f"{name}\t{target}\n".encode())
    return f"sha256:{digest.hexdigest()}"


def class_counts(split: Split) -> dict[str, int]:
    """Samples (positives, for multi-label) per class."""
    multilabel = split.task == "multilabel"
    counts = split.targets.sum(0) if multilabel else np.bincount(split.targets, minlength=len(split.classes))
    return {name: int(count) for name, count in zip(split.classes, counts, strict=True)}
