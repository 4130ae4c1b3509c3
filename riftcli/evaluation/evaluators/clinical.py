"""A finished model as a diagnostic test: what `rift clinical` does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from riftcli import dist
from riftcli.console import Stopwatch
from riftcli.data.classes import match_classes
from riftcli.data.reading import sift
from riftcli.data.split import Split
from riftcli.errors import UsageError
from riftcli.evaluation.candidates import Candidate, LoadedModel
from riftcli.evaluation.data_sets import EvalData, list_split
from riftcli.evaluation.encoder import Encoder
from riftcli.functional import clinical
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
        """Rows: model, class, rule (`0.5` or `validation`), threshold, measure, value, low, high. Further tables: roc, pr, net.

        Raises UsageError for a model without classes, or a group that the data does not have.
        """
        clock = Stopwatch()
        rows: list[Row] = []
        entries = []
        tables: dict[str, list[Row]] = {"roc": [], "pr": [], "net_benefit": []}
        groups_of: dict[str, str] = {}
        for candidate in candidates:
            loaded = candidate.load(encoder.device)
            if not loaded.classes:
                raise UsageError(f"{candidate.label}: its folder names no classes, so there is nothing to diagnose")
            entries.append(candidate.entry(loaded))
            for source in data:
                split, scores, positive = _scored(loaded, source, self.split, encoder)
                column, members = self._groups(split, source)
                groups_of[source.name] = column or "image"
                chosen = self._thresholds(loaded, source, encoder)
                place = {"model": candidate.label, "group": candidate.group, "data": source.name, "split": split.name}
                weights = clinical.group_weights(members, self.draws, self.seed)
                rows += [{**place, **row} for row in _overall(scores, positive, weights, loaded.task == "multiclass")]
                for c, name in enumerate(loaded.classes):
                    one = {**place, "class": name}
                    rows += [{**one, **row} for row in _of_class(scores[:, c], positive[:, c], weights, chosen[c])]
                    for key, points in _curves(scores[:, c], positive[:, c]).items():
                        tables[key] += [{**one, **point} for point in points]
        settings = {"split": self.split, "drawn": groups_of, "draws": self.draws, "seed": self.seed, "level": 0.95}
        env = environment(encoder.device, "fp32", dist.world_size(), self.seed)
        return ResultTable("clinical", settings, entries, rows, env, tables, clock.seconds)

    def _groups(self, split: Split, source: EvalData) -> tuple[str, np.ndarray]:
        """(the column that is drawn by, or an empty text; the group of every image, numbered from 0)."""
        named = [self.group] if self.group else source.data.held_groups
        column = next((name for name in named if name in split.groups), "")
        if self.group and not column:
            known = ", ".join(split.groups) or "none"
            raise UsageError(f"--group {self.group}: split '{split.name}' has no such column; it has: {known}")
        values = split.groups[column] if column else split.ids
        return column, np.unique(values, return_inverse=True)[1]

    def _thresholds(self, loaded: LoadedModel, source: EvalData, encoder: Encoder) -> list[float | None]:
        """Of every class, chosen on validation; None where there is no validation split, or none of a kind in it."""
        if source.data.val is None:
            return [None] * len(loaded.classes)
        _, scores, positive = _scored(loaded, source, "val", encoder)
        return [clinical.youden_threshold(scores[:, c], positive[:, c]) for c in range(len(loaded.classes))]


def _scored(loaded: LoadedModel, source: EvalData, name: str, encoder: Encoder) -> tuple[Split, np.ndarray, np.ndarray]:
    """(the split, probabilities (N, C), which classes each image has (N, C) bool)."""
    whole = list_split(source, name)
    split = match_classes(whole, loaded.classes, source.data.rules.allow_missing_classes)
    split, _ = sift(split, source.input, encoder.console)
    logits = encoder.encode(loaded, split, source.input, split.name).logits.double()
    multiclass = split.task == "multiclass"
    shares = (logits.softmax(1) if multiclass else logits.sigmoid()).cpu().numpy()
    truth = torch.from_numpy(split.targets)
    classes = torch.nn.functional.one_hot(truth.long(), len(loaded.classes)) if multiclass else truth
    return split, shares, classes.numpy().astype(bool)


def _row(measure: str, value: float | None, drawn: np.ndarray, **about: Any) -> Row:
    known = value is not None and np.isfinite(value)
    low, high = clinical.interval(drawn) if known else (None, None)
    return {**about, "measure": measure, "value": float(value) if known and value is not None else None, "low": low, "high": high}


def _overall(scores: np.ndarray, positive: np.ndarray, weights: np.ndarray, multiclass: bool) -> list[Row]:
    """Accuracy of the likeliest class (of single labels), and the mean AUROC over the classes that have one."""
    about = {"class": OVERALL, "rule": "", "threshold": None, "positives": int(positive.sum()), "negatives": None}
    found = []
    if multiclass:
        right = positive[np.arange(len(scores)), scores.argmax(1)].astype("float64")
        found.append(_row("accuracy", right.mean(), weights @ right / weights.sum(1), **about))
    ones = np.ones((1, len(scores)))
    values = [clinical.weighted_auroc(scores[:, c], positive[:, c], ones)[0] for c in range(scores.shape[1])]
    defined = [c for c, value in enumerate(values) if np.isfinite(value)]
    if defined:
        drawn = np.stack([clinical.weighted_auroc(scores[:, c], positive[:, c], weights) for c in defined])
        found.append(_row("auroc", float(np.mean([values[c] for c in defined])), drawn.mean(0), **about))
    return found


def _of_class(scores: np.ndarray, positive: np.ndarray, weights: np.ndarray, chosen: float | None) -> list[Row]:
    """One class against the others."""
    sizes = {"positives": int(positive.sum()), "negatives": int((~positive).sum())}
    free = {"rule": "", "threshold": None, **sizes}
    auroc = clinical.weighted_auroc(scores, positive, np.ones((1, len(scores))))[0]
    rows = [_row("auroc", auroc, clinical.weighted_auroc(scores, positive, weights), **free)]
    for rule, threshold in (("0.5", 0.5), ("validation", chosen)):
        if threshold is None:
            continue
        counts = clinical.counts_at(scores, positive, threshold)
        values, drawn = clinical.rates(counts.sum(0)), clinical.rates(weights @ counts)
        about = {"rule": rule, "threshold": threshold, **sizes}
        rows += [_row(name, float(values[name]), drawn[name], **about) for name in clinical.RATES]
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
