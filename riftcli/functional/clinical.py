"""Numbers of a diagnostic test: rates at a threshold, curves, net benefit, and bootstrap intervals by group. NumPy, fp64."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

RATES = ("sensitivity", "specificity", "ppv", "npv", "f1", "accuracy")


def counts_at(scores: np.ndarray, positive: np.ndarray, threshold: float) -> np.ndarray:
    """(N, 4) of 0/1: is each sample a true positive, false positive, false negative, true negative; scores (N,), positive (N,).

    A score equal to the threshold counts as positive.
    """
    called, positive = scores >= threshold, positive.astype(bool)
    return np.stack([called & positive, called & ~positive, ~called & positive, ~called & ~positive], 1).astype("float64")


def rates(counts: np.ndarray) -> dict[str, np.ndarray]:
    """RATES from sums of counts_at (..., 4); NaN where a rate has nothing to divide by."""
    tp, fp, fn, tn = np.moveaxis(counts, -1, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return {
            "sensitivity": tp / (tp + fn),
            "specificity": tn / (tn + fp),
            "ppv": tp / (tp + fp),
            "npv": tn / (tn + fn),
            "f1": 2 * tp / (2 * tp + fp + fn),
            "accuracy": (tp + tn) / (tp + fp + fn + tn),
        }


def weighted_auroc(scores: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Area under the ROC curve for every row of weights (B, N): the chance that a positive scores above a negative, ties half.

    NaN where a row has no positive or no negative.
    """
    order = np.argsort(scores, kind="stable")
    ranked, truth, w = scores[order], positive[order].astype(bool), weights[:, order]
    starts = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]])
    pos = np.add.reduceat(np.where(truth, w, 0.0), starts, axis=1)  # (B, distinct scores)
    neg = np.add.reduceat(np.where(truth, 0.0, w), starts, axis=1)
    below = np.cumsum(neg, axis=1) - neg
    with np.errstate(divide="ignore", invalid="ignore"):
        return (pos * (below + 0.5 * neg)).sum(1) / (pos.sum(1) * neg.sum(1))


NUMBERS = 2**24  # weights that are held at once


def group_weights(groups: np.ndarray, draws: int, seed: int) -> Iterator[np.ndarray]:
    """How often each sample is in a bootstrap draw of whole groups: (b, N) at a time, `draws` rows in all; groups (N,)."""
    count = int(groups.max()) + 1
    rng = np.random.default_rng(seed)
    rows = max(1, NUMBERS // len(groups))
    for start in range(0, draws, rows):
        some = rng.multinomial(count, np.full(count, 1 / count), size=min(rows, draws - start))
        yield some[:, groups].astype("float64")


def youden_threshold(scores: np.ndarray, positive: np.ndarray) -> float | None:
    """The score at which sensitivity + specificity is largest (Youden 1950), the higher one of equals; None without both kinds.

    Between two scores the threshold is their middle, so that it does not hang on a single sample.
    """
    positive = positive.astype(bool)
    if positive.all() or not positive.any():
        return None
    distinct = np.unique(scores)
    true = np.searchsorted(np.sort(scores[positive]), distinct, side="left")
    false = np.searchsorted(np.sort(scores[~positive]), distinct, side="left")
    index = false / (~positive).sum() - true / positive.sum()  # specificity + sensitivity - 1 of `score >= distinct`
    best = int(np.flatnonzero(index >= index.max() - 1e-12)[-1])
    return float(distinct[best]) if best == 0 else float((distinct[best - 1] + distinct[best]) / 2)


def curve_points(scores: np.ndarray, positive: np.ndarray) -> dict[str, np.ndarray]:
    """threshold, true positives and false positives of every distinct score, from the highest; each (M,)."""
    order = np.argsort(-scores, kind="stable")
    ranked, truth = scores[order], positive[order].astype("float64")
    last = np.flatnonzero(np.r_[ranked[1:] != ranked[:-1], True])
    return {"threshold": ranked[last], "tp": np.cumsum(truth)[last], "fp": np.cumsum(1 - truth)[last]}


def net_benefit(scores: np.ndarray, positive: np.ndarray, thresholds: np.ndarray) -> dict[str, np.ndarray]:
    """Net benefit of treating those above each threshold, of treating all and of treating none (Vickers and Elkin 2006, Eq. 1):
    TP / n - FP / n * p / (1 - p); each (T,).
    """
    n, prevalence = len(scores), positive.mean()
    called = scores[None] >= thresholds[:, None]
    odds = thresholds / (1 - thresholds)
    model = (called & positive.astype(bool)).sum(1) / n - (called & ~positive.astype(bool)).sum(1) / n * odds
    return {"net_benefit": model, "treat_all": prevalence - (1 - prevalence) * odds, "treat_none": np.zeros(len(thresholds))}
