"""A finished model as a diagnostic test: what `rift clinical` does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from riftcli import dist
from riftcli.console import Stopwatch
from riftcli.data.split import Split
from riftcli.data.splits import fingerprint
from riftcli.errors import DataError, UsageError
from riftcli.evaluation.candidates import Candidate, LoadedModel
from riftcli.evaluation.data_sets import EvalData, matched_split
from riftcli.evaluation.encoder import Encoder
from riftcli.functional import clinical
from riftcli.functional.intervals import percentile_interval
from riftcli.protocols import UNKNOWN
from riftcli.runs.provenance import environment
from riftcli.runs.result_table import ResultTable, Row

NET = np.linspace(0.01, 0.99, 99)  # thresholds of a decision curve
OVERALL = "all classes"


@dataclass(frozen=True)
class Clinical:
    """Sensitivity, specificity, PPV, NPV, F1, accuracy and AUROC of every class, with 95 % intervals by bootstrap.

    At a probability of 0.5 and at the threshold with the largest sensitivity + specificity on validation, each class against the
    others. split: train, val, test or another. group: column whose values are drawn together (patient); empty takes the recipe's
    groups, else every image for itself. draws, seed: of the bootstrap.
    """

    split: str = "test"
    group: str = ""
    draws: int = 1000
    seed: int = 0

    plot: ClassVar[str] = "riftcli.report.plots.clinical:plot_clinical"

    def measure(self, candidates: Sequence[Candidate], data: Sequence[EvalData], encoder: Encoder) -> ResultTable:
        """Rows: model, class, rule (`0.5` or `validation`), threshold, measure, value, low, high; further tables roc, pr and
        net_benefit. Numbers are computed on rank 0 alone.

        Raises UsageError for a model without classes, or a group that the data does not have.
        """
        clock = Stopwatch()
        rows: list[Row] = []
        entries = []
        tables: dict[str, list[Row]] = {"roc": [], "pr": [], "net_benefit": []}
        units: dict[str, str] = {}
        for candidate in candidates:
            loaded = candidate.load(encoder.device)
            if not loaded.classes:
                raise UsageError(f"{candidate.label}: its folder names no classes, so there is nothing to diagnose")
            entries.append(candidate.entry(loaded))
            held = _validation(candidate, loaded, encoder)
            for source in data:
                seen = _scored(loaded, source, self.split, encoder)
                column, members = self._groups(seen.split, source)
                units[source.name] = column or "image"
                if not dist.is_main():
                    continue
                place = {"model": candidate.label, "group": candidate.group, "data": source.name, "split": seen.split.name}
                # a threshold that these very images chose says nothing about others
                chosen = _thresholds(None if held is None or fingerprint(held.split) == fingerprint(seen.split) else held, seen)
                rows += [{**place, **row} for row in self._rows(seen, members, chosen)]
                for c, name in enumerate(seen.split.classes):
                    for key, points in _curves(*seen.of_class(c)).items():
                        tables[key] += [{**place, "class": name, **point} for point in points]
        settings = {"split": self.split, "drawn": units, "draws": self.draws, "seed": self.seed, "level": 0.95}
        env = environment(encoder.device, encoder.precision, dist.world_size(), self.seed)
        return ResultTable("clinical", settings, entries, rows, env, tables, clock.seconds)

    def _rows(self, seen: Scored, members: np.ndarray, chosen: Sequence[float | None]) -> list[Row]:
        """All rows of a model on a set, from one pass over the draws."""
        counts = [
            {
                rule: clinical.counts_at(seen.scores[:, c], seen.positive[:, c], threshold) * seen.known[:, c, None]
                for rule, threshold in rules.items()
            }
            for c, rules in enumerate(_rules(chosen))
        ]
        right = seen.positive[np.arange(len(seen.scores)), seen.scores.argmax(1)].astype("float64")
        parts = []
        for weights in clinical.group_weights(members, self.draws, self.seed):
            columns = zip(seen.scores.T, seen.positive.T, seen.known.T, strict=True)
            of_class = [clinical.weighted_auroc(scores, positive, weights * known) for scores, positive, known in columns]
            sums = [{rule: weights @ own for rule, own in by_rule.items()} for by_rule in counts]
            parts.append((np.stack(of_class, 1), sums, weights @ right / weights.sum(1)))
        auroc = np.concatenate([part[0] for part in parts])  # (draws, C)
        rows = _overall(seen, auroc, np.concatenate([part[2] for part in parts]), right)
        for c, name in enumerate(seen.split.classes):
            drawn = {rule: np.concatenate([part[1][c][rule] for part in parts]) for rule in counts[c]}
            thresholds = _rules(chosen)[c]
            rows += _of_class(name, *seen.of_class(c), auroc[:, c], thresholds, counts[c], drawn)
        return rows

    def _groups(self, split: Split, source: EvalData) -> tuple[str, np.ndarray]:
        """(the column that is drawn by, or an empty text; the group of every image, numbered from 0)."""
        named = [self.group] if self.group else source.data.held_groups
        column = next((name for name in named if name in split.groups), "")
        if self.group and not column:
            known = ", ".join(split.groups) or "none"
            raise UsageError(f"--group {self.group}: split '{split.name}' has no such column; it has: {known}")
        values = split.groups[column] if column else split.ids
        return column, np.unique(values, return_inverse=True)[1]


@dataclass(frozen=True)
class Scored:
    """A split, probabilities (N, C), which classes each image has (N, C) bool, and of which that is known (N, C) bool."""

    split: Split
    scores: np.ndarray
    positive: np.ndarray
    known: np.ndarray

    def of_class(self, c: int) -> tuple[np.ndarray, np.ndarray]:
        """(scores, positive) of the images of which class c is known."""
        rows = self.known[:, c]
        return self.scores[rows, c], self.positive[rows, c]


def _scored(loaded: LoadedModel, source: EvalData, name: str, encoder: Encoder) -> Scored:
    split, _ = matched_split(source, name, loaded.classes, encoder.console)
    logits = encoder.encode(loaded, split, source.input, split.name).logits.double()
    multiclass = split.task == "multiclass"
    shares = (logits.softmax(1) if multiclass else logits.sigmoid()).cpu().numpy()
    truth = torch.from_numpy(split.targets)
    classes = torch.nn.functional.one_hot(truth.long(), len(loaded.classes)) if multiclass else truth
    return Scored(split, shares, (classes == 1).numpy(), (classes != UNKNOWN).numpy())


def _validation(candidate: Candidate, loaded: LoadedModel, encoder: Encoder) -> Scored | None:
    """The validation split of the model's own run, which thresholds are chosen on; None where there is none."""
    if not candidate.has_data or candidate.recipe.data.val is None:
        return None
    try:
        return _scored(loaded, EvalData.of_run(candidate), "val", encoder)
    except DataError as error:  # the model may be elsewhere than what it was trained on
        encoder.console.warn(f"{candidate.label}: no thresholds of its validation images: {error}")
        return None


def _thresholds(held: Scored | None, seen: Scored) -> list[float | None]:
    """Of every class; None without validation images of both kinds."""
    if held is None:
        return [None] * seen.scores.shape[1]
    return [clinical.youden_threshold(*held.of_class(c)) for c in range(held.scores.shape[1])]


def _rules(chosen: Sequence[float | None]) -> list[dict[str, float]]:
    """Of every class: rule -> threshold."""
    return [{"0.5": 0.5} | ({} if value is None else {"validation": value}) for value in chosen]


def _row(measure: str, value: float | None, drawn: np.ndarray, **about: Any) -> Row:
    known = value is not None and np.isfinite(value)
    low, high = percentile_interval(drawn) if known else (None, None)
    return {**about, "measure": measure, "value": float(value) if known and value is not None else None, "low": low, "high": high}


def _overall(seen: Scored, auroc: np.ndarray, accuracy: np.ndarray, right: np.ndarray) -> list[Row]:
    """Accuracy of the likeliest class (of single labels), and the mean AUROC over the classes that have one; auroc (draws, C)."""
    about = {"class": OVERALL, "rule": "", "threshold": None, "positives": int(seen.positive.sum()), "negatives": None}
    rows = [_row("accuracy", right.mean(), accuracy, **about)] if seen.split.task == "multiclass" else []
    values = [_auroc(*seen.of_class(c)) for c in range(seen.scores.shape[1])]
    defined = [c for c, value in enumerate(values) if np.isfinite(value)]
    if defined:
        own = auroc[:, defined]
        # a draw without a rare class is the mean over the others, as the number itself is
        known = np.isfinite(own)
        means = np.where(known.any(1), np.where(known, own, 0.0).sum(1) / known.sum(1).clip(1), np.nan)
        rows.append(_row("auroc", float(np.mean([values[c] for c in defined])), means, **about))
    return rows


def _auroc(scores: np.ndarray, positive: np.ndarray) -> float:
    if len(scores) == 0:  # of no image is the class known
        return np.nan
    return float(clinical.weighted_auroc(scores, positive, np.ones((1, len(scores))))[0])


def _of_class(
    name: str,
    scores: np.ndarray,
    positive: np.ndarray,
    auroc: np.ndarray,
    thresholds: dict[str, float],
    counts: dict[str, np.ndarray],
    drawn: dict[str, np.ndarray],
) -> list[Row]:
    """One class against the others; counts: rule -> (N, 4), drawn: rule -> sums of them (draws, 4)."""
    sizes = {"positives": int(positive.sum()), "negatives": int((~positive).sum())}
    rows = [_row("auroc", _auroc(scores, positive), auroc, **{"class": name, "rule": "", "threshold": None, **sizes})]
    for rule, threshold in thresholds.items():
        values, again = clinical.rates(counts[rule].sum(0)), clinical.rates(drawn[rule])
        about = {"class": name, "rule": rule, "threshold": threshold, **sizes}
        rows += [_row(measure, float(values[measure]), again[measure], **about) for measure in clinical.RATES]
    return rows


MOST_POINTS = 200  # of a curve that is written: more cannot be seen


def _curves(scores: np.ndarray, positive: np.ndarray) -> dict[str, list[Row]]:
    """ROC, precision over recall, and net benefit, as rows; a curve that needs positives and negatives has none without."""
    found: dict[str, list[Row]] = {}
    p, n = positive.sum(), (~positive).sum()
    if p and n:
        points = clinical.curve_points(scores, positive)
        keep = np.unique(np.linspace(0, len(points["tp"]) - 1, MOST_POINTS).round().astype(int))
        tp, fp, at = points["tp"][keep], points["fp"][keep], points["threshold"][keep]
        roc = zip([0.0, *(fp / n)], [0.0, *(tp / p)], [None, *at], strict=True)
        found["roc"] = [
            {"threshold": None if t is None else float(t), "false_positive_rate": float(x), "sensitivity": float(y)}
            for x, y, t in roc
        ]
        pr = zip(at, tp / p, tp / (tp + fp), strict=True)
        found["pr"] = [{"threshold": float(t), "sensitivity": float(r), "ppv": float(q)} for t, r, q in pr]
        net = clinical.net_benefit(scores, positive, NET)
        found["net_benefit"] = [
            {"threshold": float(t), **{key: float(values[i]) for key, values in net.items()}} for i, t in enumerate(NET)
        ]
    return found
