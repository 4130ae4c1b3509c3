"""Standard errors in one pass: against the spread of many samples from the same population, and against random halves."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from scipy.stats import rankdata

from riftcli import catalog
from riftcli.data.split import Split
from riftcli.evaluation.evaluators import similarity
from riftcli.evaluation.evaluators.similarity import half_sample_spreads
from riftcli.evaluation.features import FeatureTable
from riftcli.functional import alignment, covariance, kernels, rsa
from riftcli.functional.pair_table import PairTable
from riftcli.functional.paired import Paired
from riftcli.protocols import Predictions

MEASURES = ["cka", "cka_debiased", "cka_rbf", "rsa", "rsa_spearman", "rsa_euclid", "procrustes", "effective_rank"]


def draw(n: int, generator: torch.Generator, d: int = 6, e: int = 5) -> Predictions:
    """n images through two models that agree on most of what they see."""
    x = torch.randn(n, d, generator=generator, dtype=torch.float64) * torch.linspace(2, 0.5, d, dtype=torch.float64)
    y = x[:, :e] + 0.7 * torch.randn(n, e, generator=generator, dtype=torch.float64)
    nothing = torch.zeros(n, dtype=torch.long)
    return Predictions(torch.zeros(n, 1), nothing, y + 1, ["a"], "multiclass", x + 1)


def of_halves(metric, seen: Predictions, draws: int) -> float | None:
    return half_sample_spreads({"it": metric}, seen, draws, 0)["it"]


@pytest.mark.parametrize("name", MEASURES)
def test_it_is_the_spread_of_the_value_over_samples(name):
    metric, generator = catalog.component("metric", name)(), torch.Generator().manual_seed(0)
    found = [metric.with_error(draw(300, generator)) for _ in range(150)]
    spread = float(np.std([entry["value"] for entry, _ in found], ddof=1))
    assert np.mean([error for _, error in found]) == pytest.approx(spread, rel=0.25)


def test_neighbours_of_halves_are_found_among_those_of_all():
    metric, seen = catalog.component("metric", "mutual_knn")(), draw(800, torch.Generator().manual_seed(1))
    assert metric.spread_of_halves(seen, 60, 0) == pytest.approx(of_halves(metric, seen, 60), rel=0.4)
    assert metric.spread_of_halves(seen, 60, 0) != metric.spread_of_halves(seen, 60, 1)


def test_halves_of_blocks_are_halves():
    metric, seen = catalog.component("metric", "svcca")(), draw(4200, torch.Generator().manual_seed(1))
    found = metric.spread_of_halves(seen, 100, 0)
    metric_alone = replace_spread(metric)
    assert found == pytest.approx(of_halves(metric_alone, seen, 100), rel=0.3)
    assert found != metric.spread_of_halves(seen, 100, 1)
    assert metric.spread_of_halves(draw(3000, torch.Generator().manual_seed(1)), 100, 0) is None


def replace_spread(metric):
    """The metric without a way of its own."""
    return type("Plain", (), {"compute": staticmethod(metric.compute)})()


@pytest.mark.parametrize("name", MEASURES)
def test_it_is_that_of_random_halves(name):
    metric, generator = catalog.component("metric", name)(), torch.Generator().manual_seed(1)
    seen = draw(800, generator)
    entry, error = metric.with_error(seen)
    assert entry == metric.compute(seen)
    assert error == pytest.approx(of_halves(metric, seen, 60), rel=0.4)


def clusters(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Six classes of different size: pairs within and between them, where the slopes of ranks and medians count."""
    generator = torch.Generator().manual_seed(3)
    centres = 2 * torch.randn(6, 8, generator=generator, dtype=torch.float64)
    own = (6 * torch.rand(n, generator=generator) ** 3).long().clamp_max(5)
    x = centres[own] + torch.randn(n, 8, generator=generator, dtype=torch.float64)
    return x + 1, x[:, :6] + 0.8 * torch.randn(n, 6, generator=generator, dtype=torch.float64) + 1


@pytest.mark.parametrize(
    ("value", "with_error"),
    [
        (partial(rsa.rsa, rank=True), partial(rsa.rsa_with_error, rank=True)),
        (rsa.rsa, rsa.rsa_with_error),
        (partial(rsa.rsa, distance="euclid"), partial(rsa.rsa_with_error, distance="euclid")),
        (kernels.rbf_cka, kernels.rbf_cka_with_error),
    ],
    ids=["spearman", "pearson", "euclid", "rbf"],
)
def test_it_is_that_of_leaving_out_one_sample_after_the_other(value, with_error):
    x, y = clusters(150)
    keep = ~torch.eye(len(x), dtype=torch.bool)
    values = torch.tensor([value(x[rows], y[rows]) for rows in keep], dtype=torch.float64)
    jackknife = float(((len(x) - 1) * (values - values.mean()).square().mean()).sqrt())
    found, error = with_error(Paired(x, y))
    assert found == pytest.approx(value(x, y), abs=1e-12)
    assert error == pytest.approx(jackknife, rel=0.1)


def test_moments_give_what_the_samples_give():
    seen = draw(3000, torch.Generator().manual_seed(0), 12, 9)
    x, y = seen.pretrained.float(), seen.features.float()
    m = Paired(x, y).moments
    centred = [rows.double() - rows.double().mean(0) for rows in (x, y)]
    torch.testing.assert_close(m[1], centred[0].T @ centred[1], rtol=1e-5, atol=1e-3)
    spectra = [covariance.eigenvalues(rows) for rows in centred]
    ranks = [float(covariance.effective_rank(spectrum)) for spectrum in spectra]
    found = [covariance.participation_ratio(scatter) for scatter in (m[0], m[2])]
    assert found == pytest.approx(ranks, rel=1e-6)
    exact = [covariance.participation_ratio(rows.T @ rows) for rows in centred]
    assert exact == pytest.approx(ranks, rel=1e-9)


@pytest.mark.parametrize("variance", [0.5, 0.9, 0.99])
def test_svcca_of_many_samples_is_that_of_their_svd(variance, monkeypatch):
    seen = draw(2500, torch.Generator().manual_seed(0), 12, 9)
    bases = [alignment._basis(rows, variance) for rows in (seen.pretrained, seen.features)]
    wanted = torch.linalg.svdvals(bases[0].T @ bases[1])
    quick = alignment.canonical_correlations(seen.pretrained.float(), seen.features.float(), variance)
    torch.testing.assert_close(quick, wanted, rtol=0, atol=1e-5)
    monkeypatch.setattr(alignment, "MANY", 10**9)
    exact = alignment.canonical_correlations(seen.pretrained, seen.features, variance)
    torch.testing.assert_close(exact, wanted, rtol=0, atol=1e-10)


@pytest.mark.parametrize("values", [[3.0, 1.0, 2.0, 9.0], [1.0, 1.0, 0.0, 5.0, 5.0, 5.0], [2.0]])
def test_ranks_are_scipy_s(values):
    assert rsa.in_order(torch.tensor(values, dtype=torch.float64)).ranks.tolist() == rankdata(values).tolist()


@pytest.mark.parametrize("outlier", [0.0, 40.0])
def test_the_ranks_of_many_pairs_come_from_steps_of_the_value(outlier):
    """300,000 pairs, ties among them; the correlation and its slope as from their sorted order. With one far from all others the
    steps are too coarse, and they are sorted.
    """
    generator = torch.Generator().manual_seed(0)
    u = torch.randn(300_000, generator=generator, dtype=torch.float64)
    u[:500], u[0] = u[500:1000].clone(), outlier * 1e6 or u[0]
    v = 0.8 * u.clamp(-9, 9) + torch.randn(len(u), generator=generator, dtype=torch.float64)
    quick, exact = rsa.in_order(u), torch.from_numpy(rankdata(u.numpy()))
    assert quick.binned == (outlier == 0)
    assert float((quick.ranks - exact).abs().max()) <= (rsa.COARSE * len(u) / 2 if quick.binned else 0)
    other = torch.from_numpy(rankdata(v.numpy()))
    assert np.corrcoef(quick.ranks, other)[0, 1] == pytest.approx(np.corrcoef(exact, other)[0, 1], abs=1e-6)
    order = u.argsort()
    later = rsa.Order(exact, order).later(v)
    torch.testing.assert_close(quick.later(v), later, rtol=0, atol=1e-4 * float(v.abs().mean()))


@pytest.mark.parametrize("n", [4, 5, 31])
def test_the_bandwidth_is_the_median_of_all_pairs(n):
    rows = torch.randn(n, 3, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
    squares = torch.cdist(rows, rows).square()
    median = squares[~torch.eye(n, dtype=torch.bool)].median()
    logs = kernels.Kernel(PairTable(rows), 0.8).logs(slice(0, n))
    torch.testing.assert_close(logs.exp(), (-squares / (2 * 0.64 * median)).exp())


@pytest.mark.parametrize("name", similarity.measures())
def test_of_many_samples_without_a_value_there_is_no_interval(name):
    """Features that have collapsed."""
    x = torch.randn(2100, 4, generator=torch.Generator().manual_seed(0))
    tables = [FeatureTable(rows, torch.zeros(2100, 1)) for rows in (x, torch.ones(2100, 4))]
    split = Split("test", [str(i) for i in range(2100)], np.zeros(2100, dtype=np.int64), ["a"], read=lambda i: i)
    (row,) = similarity.compare(*tables, split, similarity.Similarity((name,), intervals=2))
    if row["value"] is None:
        assert row["low"] is None and row["details"]["reason"]
    else:
        assert name == "centre_distance"


def test_many_samples_have_an_interval_of_their_influence(monkeypatch):
    seen = draw(2100, torch.Generator().manual_seed(2))
    tables = [FeatureTable(rows.float(), torch.zeros(2100, 1)) for rows in (seen.pretrained, seen.features)]
    split = Split("test", [str(i) for i in range(2100)], np.zeros(2100, dtype=np.int64), ["a"], read=lambda i: i)
    (row,) = similarity.compare(*tables, split, similarity.Similarity(("cka",)))
    entry, error = catalog.component("metric", "cka")().with_error(seen)
    assert row["value"] == pytest.approx(entry["value"], abs=1e-6)
    assert [row["low"], row["high"]] == pytest.approx([row["value"] - 1.96 * error, row["value"] + 1.96 * error], abs=1e-6)
    (without,) = similarity.compare(*tables, split, similarity.Similarity(("cka",), intervals=0))
    assert without["low"] is None
    monkeypatch.setattr(similarity, "HALVES", 2100)
    (halves,) = similarity.compare(*tables, split, similarity.Similarity(("cka",)))
    assert halves["low"] != row["low"] and halves["low"] == pytest.approx(row["low"], abs=5e-3)


def test_on_another_device_every_measure_is_what_it_is_here(monkeypatch):
    from pretended_device import pretended

    x, y = (rows.float() for rows in clusters(700))
    tables = [FeatureTable(rows, torch.zeros(700, 1)) for rows in (x, torch.cat([y, x[:, :2]], 1))]
    split = Split("test", [str(i) for i in range(700)], np.zeros(700, dtype=np.int64), ["a"], read=lambda i: i)
    for place, name, few in ((similarity, "HALVES", 100), (alignment, "MANY", 100), (rsa, "BINS", 2**12), (rsa, "COARSE", 0.1)):
        monkeypatch.setattr(place, name, few)
    options = similarity.Similarity(tuple(similarity.measures()), intervals=3)
    here = similarity.compare(*tables, split, options)
    with pretended(monkeypatch) as device:
        there = similarity.compare(*tables, split, options, device)
    for one, other in zip(here, there, strict=True):
        assert other["metric"] == one["metric"]
        assert [other[key] for key in ("value", "low", "high")] == pytest.approx(
            [one[key] for key in ("value", "low", "high")], rel=1e-6
        )
        assert one["low"] is not None


def test_the_error_of_nearly_equal_features_is_not_that_of_rounding():
    """In single precision terms that nearly cancel, over a small distance, would be all there is."""
    x = draw(700, torch.Generator().manual_seed(0)).pretrained.float()
    noise = torch.randn(700, 6, generator=torch.Generator().manual_seed(1))
    for size in (1e-3, 1e-4):
        y = x + size * noise
        _, wanted = alignment.procrustes_of(Paired(x.double(), y.double()), with_error=True)
        value, error = alignment.procrustes_of(Paired(x, y), with_error=True)
        assert error == pytest.approx(wanted, rel=1e-6) and error < 0.1 * value


def test_influence_is_asked_where_there_are_many_more_samples_than_dimensions():
    """Elsewhere terms of second order count, and random halves tell."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(520, 150, generator=generator)
    tables = [FeatureTable(rows, torch.zeros(520, 1)) for rows in (x, x + 0.5 * torch.randn(520, 150, generator=generator))]
    split = Split("test", [str(i) for i in range(520)], np.zeros(520, dtype=np.int64), ["a"], read=lambda i: i)
    names = ("cka", "cka_debiased", "effective_rank", "procrustes")
    ticks: list[int] = []
    rows = similarity.compare(*tables, split, similarity.Similarity(names, intervals=5), tick=ticks.append)
    seen = Predictions(torch.zeros(520, 1), torch.zeros(520).long(), tables[1].features, ["a"], "multiclass", x)
    for row in rows:
        metric = catalog.component("metric", row["metric"])()
        drawn = half_sample_spreads({"it": metric}, seen, 5, 0)["it"]
        wanted = metric.with_error(seen)[1] if row["metric"] == "procrustes" else drawn
        assert row["high"] - row["value"] == pytest.approx(1.96 * wanted)
    assert sum(ticks) == len(names) * 6


@pytest.mark.parametrize(("count", "intervals"), [(520, 1), (7, 3), (3, 3), (520, 0)])
def test_progress_comes_to_its_end(count, intervals):
    x = torch.randn(count, 4, generator=torch.Generator().manual_seed(0))
    tables = [FeatureTable(rows, torch.zeros(count, 1)) for rows in (x, 2 * x)]
    split = Split("test", [str(i) for i in range(count)], np.zeros(count, dtype=np.int64), ["a"], read=lambda i: i)
    ticks: list[int] = []
    names = ("cka", "cka_debiased", "rsa", "svcca")
    similarity.compare(*tables, split, similarity.Similarity(names, intervals=intervals), tick=ticks.append)
    assert sum(ticks) == len(names) * (1 + intervals)
