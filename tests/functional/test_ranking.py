"""Retrieval scores, compatibility and maps between features against slow, obvious references in fp64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from riftcli.functional.alignment import procrustes_rotation
from riftcli.functional.compatibility import area, difference_interval, gain, refill_order, refilled
from riftcli.functional.feature_maps import class_contrast, padded, slerp
from riftcli.functional.ranking import ranked


def naive(queries, gallery, labels, gallery_labels, own, k):
    """Sort, walk down, count; a wrong item that is as near comes first."""
    hits, precisions, defined = [], [], []
    for i, query in enumerate(queries):
        items = []
        for j, item in enumerate(gallery):
            if own is not None and own[i] == j:
                continue
            near = float(np.dot(query, item) / np.linalg.norm(query) / np.linalg.norm(item))
            items.append((-round(near, 12), int(labels[i] == gallery_labels[j])))
        items.sort()
        found, precision, wanted = 0, 0.0, sum(right for _, right in items)
        for place, (_, right) in enumerate(items, 1):
            if right:
                found += 1
                precision += found / place
        defined.append(wanted > 0)
        hits.append(any(right for _, right in items[:k]))
        precisions.append(precision / wanted if wanted else 0.0)
    return np.array(hits), np.array(precisions), np.array(defined)


def some(count, other, classes, seed=0, width=5):
    rng = np.random.default_rng(seed)
    return (
        rng.normal(size=(count, width)),
        rng.normal(size=(other, width)),
        rng.integers(0, classes, count),
        rng.integers(0, classes, other),
    )


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("chunk", [4, 100])
def test_ranked_equals_the_walk_down_the_list(k, chunk):
    queries, gallery, labels, gallery_labels = some(17, 23, 6)
    tensors = [torch.from_numpy(a) for a in (queries, gallery, labels, gallery_labels)]
    found = ranked(*tensors, places=(k,), chunk=chunk)
    hits, precision, defined = naive(queries, gallery, labels, gallery_labels, None, k)
    assert found.defined.numpy().tolist() == defined.tolist()
    assert found.hits[:, 0].numpy().tolist() == hits.tolist()
    np.testing.assert_allclose(found.precision.numpy(), precision, rtol=1e-12)
    scores = found.means((k,))
    assert scores == {f"cmc_{k}": pytest.approx(hits[defined].mean()), "map": pytest.approx(precision[defined].mean())}


def test_a_set_against_itself_leaves_each_query_out():
    rows, _, labels, _ = some(20, 1, 5, seed=1)
    own = torch.arange(20)
    tensors = torch.from_numpy(rows), torch.from_numpy(rows), torch.from_numpy(labels), torch.from_numpy(labels)
    found = ranked(*tensors, own)
    hits, precision, defined = naive(rows, rows, labels, labels, own.numpy(), 1)
    assert found.hits[:, 0].numpy().tolist() == hits.tolist() and found.defined.numpy().tolist() == defined.tolist()
    np.testing.assert_allclose(found.precision.numpy(), precision, rtol=1e-12)


def test_a_constant_model_finds_nothing_and_a_lonely_class_has_no_score():
    ones, labels = torch.ones(6, 3), torch.tensor([0, 0, 0, 1, 1, 2])
    found = ranked(ones, ones, labels, labels, torch.arange(6))
    assert not found.hits.any() and found.defined.tolist() == [True] * 5 + [False]
    assert found.precision[0] == pytest.approx((1 / 4 + 2 / 5) / 2), "three wrong ones come first"
    assert ranked(ones, ones, labels, labels + 9).means((1,)) == {"cmc_1": None, "map": None}


def test_a_gallery_in_parts_is_searched_as_one():
    queries, gallery, labels, gallery_labels = (torch.from_numpy(a) for a in some(11, 30, 4, seed=2))
    own = torch.full((11,), -1)
    own[3] = 17
    whole = ranked(queries, gallery, labels, gallery_labels, own, (1, 5), chunk=100)
    cuts = [slice(0, 7), slice(7, 20), slice(20, 30)]
    unit, rows = F.normalize(queries, dim=1), F.normalize(gallery, dim=1)
    similarity, same = unit @ rows.T, labels[:, None] == gallery_labels
    same[3, 17] = False
    right = similarity.masked_fill(~same, float("-inf"))
    wrong = similarity.masked_fill(labels[:, None] == gallery_labels, float("-inf"))
    everything = right.sort(1, descending=True).values[:, : int(same.sum(1).max())]

    def nearer(_):
        return sum((wrong[:, cut][:, None, :] >= everything[:, :, None]).sum(2) for cut in cuts)

    part = ranked(
        queries,
        gallery[cuts[1]],
        labels,
        gallery_labels[cuts[1]],
        own - 7 * (own >= 7).long(),
        (1, 5),
        100,
        lambda _: everything,
        nearer,
    )
    assert torch.equal(part.hits, whole.hits) and torch.equal(part.defined, whole.defined)
    torch.testing.assert_close(part.precision, whole.precision)


def test_ranks_with_unequal_parts_meet_equally_often(monkeypatch):
    """61 rows on two ranks are 30 and 31: a number of queries at a time that depends on the part would leave a rank waiting."""
    from riftcli.evaluation.evaluators import retrieval
    from riftcli.functional import ranking

    queries, gallery, labels, gallery_labels = (torch.from_numpy(a) for a in some(10, 61, 4))
    monkeypatch.setattr(ranking, "SIMILARITIES", 154)
    monkeypatch.setattr(retrieval.dist, "world_size", lambda: 2)
    monkeypatch.setattr(retrieval.dist, "sum_over_ranks", lambda value: value)
    met = []
    for rank in range(2):
        rounds = []
        monkeypatch.setattr(retrieval.dist, "rank", lambda rank=rank: rank)
        monkeypatch.setattr(retrieval, "_side_by_side", lambda rows, rounds=rounds: rounds.append(1) or rows)
        search = retrieval.Search(labels, gallery_labels, torch.full((10,), -1))
        search.ranked(queries, gallery, (1,), torch.device("cpu"))
        met.append(len(rounds))
    assert met == [5, 5], "two queries of 61 similarities at a time; by parts of 30 and 31 it would be five and four"


def test_gain_interval_and_area():
    assert gain(0.6, 0.5, 0.9) == pytest.approx(0.25) and gain(0.6, 0.5, 0.5) is None
    generator = torch.Generator().manual_seed(0)
    base = (torch.rand(400, generator=generator) < 0.5).double()
    better = torch.where(torch.rand(400, generator=generator) < 0.2, torch.ones(400, dtype=torch.float64), base)
    low, high = difference_interval(better, base, 2000)
    mean, error = float((better - base).mean()), float((better - base).std() / 20)
    assert low == pytest.approx(mean - 1.96 * error, abs=0.2 * error) and high == pytest.approx(
        mean + 1.96 * error, abs=0.2 * error
    )
    assert difference_interval(base, base) == (0.0, 0.0)
    assert area([0, 0.5, 1], [0.2, 0.6, 0.8]) == pytest.approx(0.55)


def test_the_farthest_items_are_renewed_first():
    features = torch.tensor([[0.0], [1.0], [5.0], [10.0], [10.5], [14.0]])
    labels = torch.tensor([0, 0, 0, 1, 1, 1])
    assert refill_order(features, labels).tolist()[:2] == [2, 5]
    assert sorted(refill_order(features, labels, "random", 1).tolist()) == list(range(6))
    new = -torch.ones(6, 1)
    assert refilled(features, new, refill_order(features, labels), 1 / 3).flatten().tolist() == [0, 1, -1, 10, 10.5, -1]


def test_procrustes_undoes_a_rotation_and_is_the_best():
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(40, 6, generator=generator, dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(6, 6, generator=generator, dtype=torch.float64)).Q
    torch.testing.assert_close(procrustes_rotation(rows @ turn, rows), turn.T)
    target = torch.randn(40, 6, generator=generator, dtype=torch.float64)
    best = torch.linalg.norm(rows @ procrustes_rotation(rows, target) - target)
    for _ in range(50):
        other = torch.linalg.qr(torch.randn(6, 6, generator=generator, dtype=torch.float64)).Q
        assert best <= torch.linalg.norm(rows @ other - target)
    narrow = procrustes_rotation(padded(rows[:, :4], 6), rows)
    torch.testing.assert_close(narrow @ narrow.T, torch.eye(6, dtype=torch.float64), rtol=0, atol=1e-10)


def test_slerp_walks_along_the_circle():
    one, other = torch.tensor([[1.0, 0.0]]).double(), torch.tensor([[0.0, 2.0]]).double()
    for share in (0.0, 0.25, 0.5, 1.0):
        angle = torch.tensor(share * np.pi / 2)
        torch.testing.assert_close(slerp(one, other, share), torch.stack([angle.cos(), angle.sin()])[None].double())
    torch.testing.assert_close(slerp(one, one, 0.3), one)


def test_class_contrast_is_the_mean_over_candidates():
    generator = torch.Generator().manual_seed(0)
    rows, others = (torch.randn(5, 4, generator=generator).double() for _ in range(2))
    labels, expected = [0, 1, 0, 2, 1], []
    for i in range(5):
        logits = [float(F.cosine_similarity(rows[i], others[j], dim=0)) / 0.1 for j in range(5)]
        total = np.log(np.exp(logits).sum())
        mine = [j for j in range(5) if labels[j] == labels[i]]
        expected.append(-np.mean([logits[j] - total for j in mine]))
    assert float(class_contrast(rows, others, torch.tensor(labels), 0.1)) == pytest.approx(np.mean(expected))
    alone = class_contrast(rows, others, None, 0.1)
    assert float(alone) == pytest.approx(float(class_contrast(rows, others, torch.arange(5), 0.1)))
