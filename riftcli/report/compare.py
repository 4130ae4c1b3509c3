"""Runs side by side: mean and spread over seeds, the best in bold, the change against a baseline (RIFT paper Table 1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from riftcli.errors import UsageError, did_you_mean
from riftcli.recipe.naming import method_names
from riftcli.report.records import Record
from riftcli.runs.series import spread

HEADLINE = "acc or map"  # accuracy, or mAP of multi-label data: what the papers average over data sets
Repeats = dict[str, dict[str, list[tuple[Any, float]]]]  # row -> column -> (Record.repeat, value) per run
SHOWN = [HEADLINE, "acc", "map", "cka", "cka_debiased", "ece"]  # first, in this order; kNN and sharpness follow, then the cost


@dataclass(frozen=True)
class Cell:
    """One number of the table.

    change: relative to the baseline's mean, None for the baseline itself. p: two-sided paired t test against the baseline's
    runs of the same seeds or folds (DiVE Tab. 13), not adjusted for the number of tests; None without such pairs.
    """

    mean: float | None
    std: float | None
    count: int
    best: bool = False
    change: float | None = None
    p: float | None = None


@dataclass(frozen=True)
class Comparison:
    """rows: name -> column -> cell; columns are `metric` or, over several data sets, `metric (data)` and `metric (mean)`."""

    columns: list[str]
    rows: dict[str, dict[str, Cell]]
    baseline: str | None
    values: dict[str, dict[str, list[float]]]


def compare(records: Sequence[Record], metrics: Sequence[str], baseline: str | None, by_method: bool) -> Comparison:
    """Group the runs (by folder, or by method over all data sets) and average each column.

    metrics: columns to show, in order; empty takes those that every run has. Raises UsageError for names nobody measured.
    """
    sets = list(dict.fromkeys(record.data for record in records))
    by_method = by_method or len(sets) > 1
    methods = method_names([record.recipe for record in records])
    methods = [record.label if record.is_start else method for record, method in zip(records, methods, strict=True)]
    names = {id(record): name if by_method else record.group for record, name in zip(records, methods, strict=True)}
    measured = list(dict.fromkeys(name for record in records for name in record.values))
    for metric in metrics:
        if metric not in measured:
            raise UsageError(
                f"--metrics {metric}: no run has it{did_you_mean(metric, measured)}; measured: {', '.join(measured)}"
            )
    wanted = list(metrics) or _default_columns(records, measured)
    if not metrics and len(sets) == 1 and HEADLINE in wanted:
        wanted.remove(HEADLINE)
    values: dict[str, dict[str, list[float]]] = {}
    repeats: Repeats = {}
    better: dict[str, bool | None] = {}
    for record in records:
        row = values.setdefault(names[id(record)], {})
        for metric in wanted:
            column = metric if len(sets) == 1 else f"{metric} ({record.data})"
            better[column] = record.better.get(metric, better.get(column))
            if metric in record.values:
                row.setdefault(column, []).append(record.values[metric])
                repeats.setdefault(names[id(record)], {}).setdefault(column, []).append((record.repeat, record.values[metric]))
    columns = [m if len(sets) == 1 else f"{m} ({name})" for m in wanted for name in sets]
    columns = list(dict.fromkeys(c for c in columns if any(c in row for row in values.values())))
    means = {name: {column: spread(list(found)) for column, found in row.items()} for name, row in values.items()}
    if len(sets) > 1:
        columns, means, better = _with_means(columns, means, better, wanted, sets)
    plain = [names[id(r)] for r, method in zip(records, methods, strict=True) if method == "full"]
    reference = _baseline(list(values), plain, baseline)
    return Comparison(columns, _cells(columns, means, better, reference, repeats), reference, values)


def _default_columns(records: Sequence[Record], measured: Sequence[str]) -> list[str]:
    """What all runs have, the headline first, then the means over sets; what a pretrained model has is no condition."""
    runs = [record for record in records if not record.is_start]
    common = [name for name in measured if all(name in record.values for record in runs)]
    first = [*SHOWN[:2], *(name for name in common if name.endswith(" mean")), *SHOWN[2:]]
    return [*[name for name in first if name in common], *[name for name in common if name not in first]]


def _with_means(columns: list[str], means: Any, better: Any, wanted: Sequence[str], sets: Sequence[str]) -> Any:
    """After each metric, its plain mean over the data sets; only where a method was run on all of them."""
    ordered = []
    for metric in wanted:
        own = [c for c in columns if c in {f"{metric} ({name})" for name in sets}]
        title = f"{metric} (mean)"
        complete = [row for row in means.values() if len(own) == len(sets) and all(c in row for c in own)]
        ordered += [*own, title] if complete else own
        better[title] = better.get(own[0]) if own else None
        for row in complete:
            row[title] = {"mean": sum(row[c]["mean"] for c in own) / len(own), "std": None, "n": len(own)}
    return ordered, means, better


def _baseline(rows: list[str], plain: list[str], spec: str | None) -> str | None:
    """The row that changes refer to: the one that is named, else plain full finetuning where there is exactly one."""
    if spec is not None and spec not in rows:
        raise UsageError(f"--baseline {spec}: no such row{did_you_mean(spec, rows)}; rows: {', '.join(rows)}")
    return spec if spec is not None else plain[0] if len(set(plain)) == 1 else None


def _cells(
    columns: Sequence[str], means: Any, better: dict[str, Any], reference: str | None, repeats: Repeats
) -> dict[str, dict[str, Cell]]:
    rows: dict[str, dict[str, Cell]] = {name: {} for name in means}
    for column in columns:
        known = {name: row[column]["mean"] for name, row in means.items() if column in row}
        direction = better.get(column)
        top = None
        if direction is not None and len(known) > 1:
            top = (max if direction else min)(known.values())
        base = known.get(reference) if reference else None
        for name, value in known.items():
            entry = means[name][column]
            change = None if not base or name == reference else value / base - 1
            p = None
            if reference and name != reference:
                p = paired_p(repeats.get(name, {}).get(column, []), repeats.get(reference, {}).get(column, []))
            rows[name][column] = Cell(value, entry["std"], entry["n"], value == top, change, p)
    return rows


def paired_p(values: Sequence[tuple[Any, float]], base: Sequence[tuple[Any, float]]) -> float | None:
    """p of the two-sided paired t test; (repeat, value) each. None unless both have the same two or more repeats.

    None also where all differences are equal: the test has no spread to measure them with.
    """
    ours, theirs = dict(values), dict(base)
    if len(ours) < 2 or ours.keys() != theirs.keys() or len(ours) != len(values) or len(theirs) != len(base):
        return None
    differences = [ours[repeat] - theirs[repeat] for repeat in ours]
    size = max(map(abs, [*ours.values(), *theirs.values()]))
    if max(differences) - min(differences) <= 1e-9 * size:  # accuracies are multiples of 1 / n: equal but for rounding
        return None
    from scipy.stats import ttest_1samp

    return float(ttest_1samp(differences, 0).pvalue)
