"""Diagnostic numbers against scikit-learn, against slow loops, and the coverage of the intervals."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics

from riftcli.functional import clinical
from riftcli.functional.intervals import percentile_interval


@pytest.fixture(params=[0, 1])
def data(request):
    """Scores, some of them equal, and labels that go with them."""
    rng = np.random.default_rng(request.param)
    positive = rng.random(200) < 0.3
    scores = np.clip(rng.normal(0.4 + 0.2 * positive, 0.2), 0, 1).round(2 if request.param else 6)
    return scores, positive


def test_rates_are_scikit_learn_s(data):
    scores, positive = data
    called = scores >= 0.5
    found = clinical.rates(clinical.counts_at(scores, positive, 0.5).sum(0))
    expected = {
        "sensitivity": metrics.recall_score(positive, called),
        "specificity": metrics.recall_score(~positive, ~called),
        "ppv": metrics.precision_score(positive, called),
        "npv": metrics.precision_score(~positive, ~called),
        "f1": metrics.f1_score(positive, called),
        "accuracy": metrics.accuracy_score(positive, called),
    }
    assert {name: float(value) for name, value in found.items()} == pytest.approx(expected)
    nobody = clinical.rates(clinical.counts_at(scores, positive, 2.0).sum(0))
    assert np.isnan(nobody["ppv"]) and nobody["sensitivity"] == 0 and nobody["specificity"] == 1


def test_weighted_auroc_is_scikit_learn_s_on_the_drawn_samples(data):
    scores, positive = data
    weights = np.random.default_rng(3).integers(0, 4, (5, len(scores))).astype(float)
    expected = [metrics.roc_auc_score(np.repeat(positive, w.astype(int)), np.repeat(scores, w.astype(int))) for w in weights]
    assert clinical.weighted_auroc(scores, positive, weights) == pytest.approx(expected)
    assert np.isnan(clinical.weighted_auroc(scores, np.zeros(len(scores), bool), weights)).all()


def test_points_of_the_curves_are_scikit_learn_s(data):
    scores, positive = data
    points = clinical.curve_points(scores, positive)
    fpr, tpr, _ = metrics.roc_curve(positive, scores, drop_intermediate=False)
    assert np.r_[0, points["tp"] / positive.sum()] == pytest.approx(tpr)
    assert np.r_[0, points["fp"] / (~positive).sum()] == pytest.approx(fpr)


def test_the_threshold_is_the_best_of_all_by_trying_every_one(data):
    scores, positive = data

    def youden(threshold):
        found = clinical.rates(clinical.counts_at(scores, positive, threshold).sum(0))
        return float(found["sensitivity"] + found["specificity"] - 1)

    chosen = clinical.youden_threshold(scores, positive)
    distinct = np.unique(scores)
    best = max(youden(t) for t in distinct)
    assert youden(chosen) == pytest.approx(best)
    assert chosen not in distinct or chosen == distinct[0]
    assert clinical.youden_threshold(scores, np.ones(len(scores), bool)) is None


def test_net_benefit_by_hand(data):
    scores, positive = data
    thresholds = np.array([0.1, 0.35, 0.8])
    found = clinical.net_benefit(scores, positive, thresholds)
    for i, p in enumerate(thresholds):
        tp = sum(s >= p and y for s, y in zip(scores, positive, strict=True))
        fp = sum(s >= p and not y for s, y in zip(scores, positive, strict=True))
        assert found["net_benefit"][i] == pytest.approx(tp / 200 - fp / 200 * p / (1 - p))
        assert found["treat_all"][i] == pytest.approx(positive.mean() - (1 - positive.mean()) * p / (1 - p))
    assert (found["treat_none"] == 0).all()


def test_groups_are_drawn_whole(monkeypatch):
    groups = np.repeat(np.arange(6), [1, 2, 3, 4, 5, 6])
    weights = np.concatenate(list(clinical.group_weights(groups, 400, 0)))
    for g in range(6):
        own = weights[:, groups == g]
        assert (own == own[:, :1]).all()
    assert weights[:, np.unique(groups, return_index=True)[1]].sum(1) == pytest.approx(6)
    monkeypatch.setattr(clinical, "NUMBERS", 70 * len(groups))
    parts = list(clinical.group_weights(groups, 400, 0))
    assert [len(part) for part in parts] == [70] * 5 + [50]
    assert (np.concatenate(parts) == weights).all(), "the same draws, some at a time"


def test_intervals_by_group_cover_the_truth_where_those_by_image_do_not():
    """Ten images a patient that all agree: as if there were a tenth of the images."""
    rng = np.random.default_rng(0)
    covered = {"group": 0, "image": 0}
    for _ in range(200):
        right = np.repeat(rng.random(40) < 0.8, 10).astype(float)
        for kind, groups in (("group", np.repeat(np.arange(40), 10)), ("image", np.arange(400))):
            (weights,) = clinical.group_weights(groups, 200, int(rng.integers(1 << 30)))
            low, high = percentile_interval(weights @ right / weights.sum(1))
            covered[kind] += low <= 0.8 <= high
    assert covered["group"] / 200 > 0.88
    assert covered["image"] / 200 < 0.6
    assert percentile_interval(np.array([np.nan, 1.0])) == (None, None)
