"""Parts of a split: the first so many, a held-out share, a fold of a cross-validation."""

from __future__ import annotations

import numpy as np

from riftcli.data.split import Split
from riftcli.errors import DataError
from riftcli.recipe.data_sources import SplitSpec


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


def hold_out(split: Split, spec: SplitSpec, name: str = "val") -> tuple[Split, Split]:
    """(rest, held-out part): a share or a fold, stratified by class; with `spec.group`, whole groups stay together.

    Multi-label data is cut at random: rows have no one class to be stratified by. name: of the part, `val` or `test`.
    """
    if spec.group:
        _check_group(split, spec, name)
    what = f"folds {spec.folds}" if spec.folds is not None else f"fraction {spec.fraction}"
    try:
        held = _fold(split, spec) if spec.folds is not None else _share(split, spec)
    except ValueError as error:  # scikit-learn's own checks
        raise DataError(f"data.{name}.{what}: {str(error).splitlines()[0]}") from error
    rest = np.setdiff1d(np.arange(len(split)), held)
    if len(held) == 0 or len(rest) == 0:
        use = "validate" if name == "val" else "test"
        raise DataError(f"data.{name}.{what}: {len(split)} samples leave {len(rest)} to train and {len(held)} to {use}")
    return split.take(rest), split.take(held, name=name)


def _share(split: Split, spec: SplitSpec) -> np.ndarray:
    assert spec.fraction is not None
    if spec.group:
        return _group_share(split, spec)
    count = round(len(split) * spec.fraction)
    if split.task != "multiclass":
        return np.sort(np.random.default_rng(spec.seed).permutation(len(split))[:count])
    return np.sort(_positions(split, limit(split, count, spec.seed)))


def _positions(whole: Split, part: Split) -> np.ndarray:
    index = {name: i for i, name in enumerate(whole.ids)}
    return np.asarray([index[name] for name in part.ids], dtype=int)


def _check_group(split: Split, spec: SplitSpec, name: str) -> None:
    assert spec.group is not None
    where = f"data.{name}.group '{spec.group}'"
    if spec.group in split.missing_groups:
        raise DataError(f"{where}: {split.missing_groups[spec.group]}")
    if spec.group not in split.groups:
        known = ", ".join(split.groups) or "none; list the column in the data source's group_columns"
        raise DataError(f"{where}: split '{split.name}' has no such group; it has: {known}")
    count = len(set(split.groups[spec.group]))
    if count < 2:
        raise DataError(f"{where}: all samples are in one group; there is nothing to hold out")
    if spec.folds is not None and count < spec.folds:
        raise DataError(f"data.val.folds {spec.folds}: there are only {count} groups of '{spec.group}'; use fewer folds")


def _group_share(split: Split, spec: SplitSpec) -> np.ndarray:
    from sklearn.model_selection import GroupShuffleSplit

    assert spec.group is not None
    splitter = GroupShuffleSplit(n_splits=1, test_size=spec.fraction, random_state=spec.seed)
    return np.sort(next(splitter.split(np.zeros(len(split)), groups=split.groups[spec.group]))[1])


def _fold(split: Split, spec: SplitSpec) -> np.ndarray:
    from sklearn.model_selection import GroupKFold, KFold, StratifiedGroupKFold, StratifiedKFold

    assert spec.folds is not None
    multiclass = split.task == "multiclass"
    targets = split.targets if multiclass else np.zeros(len(split))
    if len(split) < spec.folds:
        raise DataError(f"data.val.folds {spec.folds}: there are only {len(split)} samples; use fewer folds")
    if multiclass and not spec.group:
        counts = np.bincount(split.targets, minlength=len(split.classes))
        short = [name for name, count in zip(split.classes, counts, strict=True) if 0 < count < spec.folds]
        if short:
            raise DataError(
                f"data.val.folds {spec.folds}: class '{short[0]}' has only {counts[split.classes.index(short[0])]} samples, "
                "so some folds would have none; use fewer folds"
            )
    groups = split.groups[spec.group] if spec.group else None
    settings = {"n_splits": spec.folds, "shuffle": True, "random_state": spec.seed}
    if groups is not None:
        splitter = StratifiedGroupKFold(**settings) if multiclass else GroupKFold(**settings)
    else:
        splitter = StratifiedKFold(**settings) if multiclass else KFold(**settings)
    return np.sort(list(splitter.split(np.zeros(len(split)), targets, groups))[spec.fold][1])
