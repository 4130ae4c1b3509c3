"""What was kept, as numbers: every measure against a slow, obvious reference in fp64, and its invariances."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.spatial.distance import pdist
from sklearn.cross_decomposition import CCA

from riftcli.evaluation.layer_features import layer_names
from riftcli.functional import alignment, calibration, kernels, neighbours, overlap, rsa
from riftcli.functional import cka as functional_cka
from riftcli.functional.cka import cka, cka_table
from riftcli.functional.knn import knn_predict
from riftcli.functional.paired import Paired
from riftcli.models.attention_maps import jensen_shannon

F64 = torch.float64


def cloud(n: int, d: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator, dtype=F64) * torch.linspace(0.3, 2, d, dtype=F64) + 3


def rotation(d: int, seed: int = 0) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(d, d, generator=torch.Generator().manual_seed(seed), dtype=F64))[0]


X, Y = cloud(40, 6, 1), cloud(40, 6, 1) @ torch.diag(torch.linspace(0.2, 1.4, 6, dtype=F64)) + 0.3 * cloud(40, 6, 2)


# ---- similarity


@pytest.mark.parametrize("distance", ["cosine", "euclid"])
@pytest.mark.parametrize("rank", [False, True])
def test_rsa_is_the_correlation_of_scipys_distances(distance, rank):
    name = {"cosine": "cosine", "euclid": "euclidean"}[distance]
    expected = (stats.spearmanr if rank else stats.pearsonr)(pdist(X.numpy(), name), pdist(Y.numpy(), name))[0]
    assert rsa.rsa(X, Y, distance, rank) == pytest.approx(expected, abs=1e-10)


def test_rsa_invariances_and_undefined_values():
    assert rsa.rsa(X, X @ rotation(6)) == pytest.approx(1, abs=1e-10)
    assert rsa.rsa(X, X + 5) < 0.999  # cosine is not blind to a shift
    assert rsa.rsa(X, X + 5, centred=True) == pytest.approx(1, abs=1e-10)
    assert rsa.rsa(X, 3 * X + 5, "euclid") == pytest.approx(1, abs=1e-10)
    assert rsa.rsa(1e-13 * X, Y, "euclid") == pytest.approx(rsa.rsa(X, Y, "euclid"), abs=1e-10)
    assert rsa.rsa(X, torch.ones(40, 6)) is None
    assert rsa.rsa(X[:2], Y[:2]) is None


def test_rbf_cka_is_the_double_centred_definition():
    n = len(X)
    h = np.eye(n) - 1 / n
    grams = []
    for rows in (X.numpy(), Y.numpy()):
        squares = np.array([[((a - b) ** 2).sum() for b in rows] for a in rows])
        median = np.sort(squares[~np.eye(n, dtype=bool)])[(n * (n - 1) - 1) // 2]
        grams.append(h @ np.exp(-squares / (2 * 0.8**2 * median)) @ h)
    expected = (grams[0] * grams[1]).sum() / math.sqrt((grams[0] ** 2).sum() * (grams[1] ** 2).sum())
    assert kernels.rbf_cka(X, Y) == pytest.approx(expected, abs=1e-10)
    assert kernels.rbf_cka(X, 2 * X @ rotation(6) + 7) == pytest.approx(1, abs=1e-10)
    assert kernels.rbf_cka(1e-13 * X, Y) == pytest.approx(kernels.rbf_cka(X, Y), abs=1e-10)
    assert kernels.rbf_cka(X, torch.ones(40, 3)) is None


def test_procrustes_is_the_minimum_over_rotations():
    def unit(rows):
        rows = rows - rows.mean(0)
        return rows / torch.linalg.norm(rows)

    found = alignment.procrustes_distance(X, Y)
    left, _, right = torch.linalg.svd(unit(X).T @ unit(Y))
    best = (left @ right).T  # rotates Y onto X
    assert found == pytest.approx(float(torch.linalg.norm(unit(X) - unit(Y) @ best)), abs=1e-10)
    others = [float(torch.linalg.norm(unit(X) - unit(Y) @ rotation(6, seed))) for seed in range(200)]
    assert found < min(others)
    assert alignment.procrustes_distance(X, 4 * X @ rotation(6) - 1) == pytest.approx(0, abs=1e-6)
    few = cloud(5, 9, 1), cloud(5, 7, 2)  # fewer samples than dimensions
    nuclear = torch.linalg.matrix_norm(unit(few[0]).T @ unit(few[1]), ord="nuc")
    assert alignment.procrustes_distance(*few) == pytest.approx(math.sqrt(2 - 2 * nuclear), abs=1e-10)
    wide = Paired(*few)
    assert alignment.procrustes_of(wide, with_error=True)[0] == pytest.approx(math.sqrt(2 - 2 * nuclear), abs=1e-10)
    assert alignment.procrustes_distance(X, torch.zeros(40, 2)) is None


def test_procrustes_align_undoes_a_rotation_and_a_shift():
    assert torch.allclose(alignment.procrustes_align(X, (X - 1) @ rotation(6, 3) + 9), X, atol=1e-10)


def test_canonical_correlations_equal_scikit_learn():
    found = alignment.canonical_correlations(X[:, :3], Y[:, :3])
    model = CCA(3, max_iter=5000, tol=1e-12).fit(X[:, :3].numpy(), Y[:, :3].numpy())
    left, right = model.transform(X[:, :3].numpy(), Y[:, :3].numpy())
    expected = [abs(np.corrcoef(left[:, i], right[:, i])[0, 1]) for i in range(3)]
    assert found.tolist() == pytest.approx(sorted(expected, reverse=True), abs=1e-6)
    anything = torch.randn(6, 6, dtype=F64, generator=torch.Generator().manual_seed(0))
    assert alignment.canonical_correlations(X, X @ anything).mean() == pytest.approx(1, abs=1e-8)  # any linear map


def test_svcca_drops_what_hardly_varies():
    noise = 1e-3 * cloud(40, 4, 5)
    assert alignment.canonical_correlations(torch.cat([X, noise], 1), X, 0.99).mean() > 0.999
    assert alignment.canonical_correlations(torch.cat([X, noise], 1), torch.cat([X, noise.flip(0)], 1)).mean() < 0.95


def test_canonical_correlations_are_undefined_where_they_are_always_one():
    assert alignment.canonical_correlations(cloud(6, 6), cloud(6, 6, 9)) is None
    assert alignment.canonical_correlations(X, torch.ones(40, 6)) is None


def test_mutual_knn_counts_shared_neighbours():
    def sets(rows, k):
        unit = rows / rows.norm(dim=1, keepdim=True)
        cosine = (unit @ unit.T).fill_diagonal_(-2)
        return [set(line.argsort(descending=True)[:k].tolist()) for line in cosine]

    expected = np.mean([len(a & b) / 5 for a, b in zip(sets(X, 5), sets(Y, 5), strict=True)])
    assert neighbours.mutual_knn(X, Y, 5) == pytest.approx(expected, abs=1e-12)
    assert neighbours.mutual_knn(X, X @ rotation(6), 5) == 1
    assert neighbours.neighbours(X, 5, chunk=7).tolist() == neighbours.neighbours(X, 5).tolist()
    unrelated = neighbours.mutual_knn(cloud(400, 8, 11) - 3, cloud(400, 8, 12) - 3, 10)
    assert unrelated == pytest.approx(10 / 399, abs=0.02)


def test_map_of_equal_and_of_distant_clouds():
    same = overlap.pca_map(X, X)
    assert overlap.centre_distance(same) == (0, 0)
    assert overlap.density_overlap(same) == pytest.approx(1)
    far = overlap.pca_map(X, X + 100)
    assert overlap.centre_distance(far)[1] > 10
    assert overlap.density_overlap(far) == pytest.approx(0, abs=1e-6)
    assert overlap.density_overlap(overlap.pca_map(X, X @ rotation(6), aligned=True)) == pytest.approx(1, abs=1e-6)
    line = torch.stack([torch.arange(20.0), torch.zeros(20), torch.zeros(20)], 1)
    assert overlap.density_overlap(overlap.pca_map(line, line)) == pytest.approx(1)  # no density in the plane, no crash


def test_centre_distance_is_that_of_the_means_on_the_map():
    moved = X + torch.tensor([4.0, 0, 0, 0, 0, 0], dtype=F64)
    plane = overlap.pca_map(X, moved)
    raw, relative = overlap.centre_distance(plane)
    assert raw == pytest.approx(float((plane.after - plane.before)[0].norm()), abs=1e-10)
    assert raw <= 4 + 1e-9
    assert relative == pytest.approx(raw / math.sqrt(float(plane.before.var(0).sum())), abs=1e-12)


def test_layer_table_equals_cka_of_each_pair():
    before, after = [X, Y, torch.ones(40, 3)], [Y, X @ rotation(6)]
    table = cka_table(before, after)
    for i, one in enumerate(before[:2]):
        for j, other in enumerate(after):
            assert float(table[i, j]) == pytest.approx(cka(one, other), abs=1e-10)
    assert table[2].isnan().all()
    assert layer_names(4) == ["block1", "block2", "block3", "head"]
    few = [rows[:5] for rows in before[:2]]  # fewer samples than dimensions
    assert float(cka_table(few, few)[0, 1]) == pytest.approx(cka(few[0], few[1]), abs=1e-10)


@pytest.mark.parametrize("kernels", [True, False])
def test_layer_table_of_single_precision_is_that_of_double(kernels, monkeypatch):
    """By kernels of few samples and by products of directions; layers of different widths, far from zero."""
    layers = [cloud(50, width, seed) for seed, width in enumerate((20, 30, 40))]
    after = [rows + 0.5 * cloud(50, rows.shape[1], 9) for rows in layers]
    monkeypatch.setattr(functional_cka, "GRAMS", 2**29 if kernels else 0)
    table = cka_table([rows.float() for rows in layers], [rows.float() for rows in after])
    wanted = [[cka(one, other) for other in after] for one in layers]
    np.testing.assert_allclose(table, wanted, rtol=0, atol=1e-6)
    assert table.dtype == F64


# ---- neighbours


def test_majority_vote_equals_scikit_learn_where_there_is_no_tie():
    from sklearn.neighbors import KNeighborsClassifier

    labels = torch.arange(40) % 2
    bank = (X + 2 * labels[:, None]).float()
    queries = cloud(30, 6, 8).float()
    reference = KNeighborsClassifier(5, metric="cosine").fit(bank.numpy(), labels.numpy())
    found = knn_predict(bank, labels, queries, k=5, vote="majority", chunk=7)
    assert found.tolist() == reference.predict(queries.numpy()).tolist()


@pytest.mark.parametrize("temperature", [0.001, 0.01, 0.07, 1.0])
def test_votes_at_any_temperature(temperature):
    labels = torch.arange(40) % 4
    bank, queries = X.float(), cloud(30, 6, 8).float()
    found = knn_predict(bank, labels, queries, k=9, temperature=temperature)
    cosine = torch.nn.functional.normalize(queries.double()) @ torch.nn.functional.normalize(bank.double()).T
    for i, line in enumerate(cosine):
        near = line.argsort(descending=True)[:9]
        scores = [sum(math.exp((float(line[j]) - 1) / temperature) for j in near if labels[j] == c) for c in range(4)]
        assert int(found[i]) == int(np.argmax(scores))


def test_a_tied_vote_goes_to_the_class_of_the_nearest_neighbour():
    bank = torch.tensor([[1.0, 0.0], [1.0, 0.1], [1.0, 0.2], [1.0, 0.3]])
    labels = torch.tensor([1, 0, 0, 1])
    assert knn_predict(bank, labels, torch.tensor([[1.0, 0.0]]), k=4, vote="majority").tolist() == [1]
    assert knn_predict(bank, labels, torch.tensor([[1.0, 0.1]]), k=2, vote="majority").tolist() == [0]


# ---- calibration


def test_reliability_bins_against_a_loop():
    generator = torch.Generator().manual_seed(3)
    confidence = torch.rand(200, generator=generator, dtype=F64)
    correct = (torch.rand(200, generator=generator, dtype=F64) < confidence).double()
    confidence[:3] = torch.tensor([0.0, 0.2, 1.0])
    found = calibration.reliability(confidence, correct, 5)
    for i in range(5):
        low, high = i / 5, (i + 1) / 5
        inside = (confidence > low) & (confidence <= high) if i else confidence <= high
        assert int(found.count[i]) == int(inside.sum())
        assert float(found.confidence[i]) == pytest.approx(float(confidence[inside].mean()))
        assert float(found.accuracy[i]) == pytest.approx(float(correct[inside].mean()))


def test_ece_equals_torchmetrics():
    from torchmetrics.functional.classification import multiclass_calibration_error

    logits = torch.randn(300, 4, generator=torch.Generator().manual_seed(1)) * 2
    targets = torch.randint(0, 4, (300,), generator=torch.Generator().manual_seed(2))
    confidence, guess = logits.softmax(1).max(1)
    found = calibration.reliability(confidence, (guess == targets).float(), 15).error
    assert found == pytest.approx(float(multiclass_calibration_error(logits.softmax(1), targets, 4, n_bins=15)), abs=1e-6)


def test_adaptive_bins_hold_equally_many():
    confidence = torch.rand(103, generator=torch.Generator().manual_seed(0), dtype=F64) ** 4
    found = calibration.reliability(confidence, torch.ones(103), 10, adaptive=True)
    assert found.count.sum() == 103
    assert found.count.max() - found.count.min() <= 1
    assert found.error == pytest.approx(float((1 - confidence).mean()))  # all right: the gap of every bin adds up
    assert calibration.reliability(torch.tensor([0.5, 0.7]), torch.ones(2), 10, adaptive=True).count.tolist() == [1, 1]


@pytest.mark.parametrize("truth", [0.5, 1.0, 3.0])
def test_temperature_is_found_again(truth):
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(20_000, 5, generator=generator, dtype=F64)
    targets = torch.multinomial(logits.softmax(1), 1, generator=generator).flatten()
    assert calibration.fit_temperature(logits * truth, targets) == pytest.approx(truth, rel=0.03)
    labels = torch.bernoulli(logits.sigmoid(), generator=generator)
    assert calibration.fit_temperature(logits * truth, labels) == pytest.approx(truth, rel=0.03)


# ---- attention


def test_jensen_shannon_equals_scipy():
    from scipy.spatial.distance import jensenshannon

    p = torch.rand(6, 9, generator=torch.Generator().manual_seed(0), dtype=F64)
    q = torch.rand(6, 9, generator=torch.Generator().manual_seed(1), dtype=F64)
    p[0, :4] = 0
    p, q = p / p.sum(1, keepdim=True), q / q.sum(1, keepdim=True)
    expected = [jensenshannon(a, b, base=2) for a, b in zip(p.numpy(), q.numpy(), strict=True)]
    assert jensen_shannon(p, q).tolist() == pytest.approx(expected, abs=1e-10)
    assert jensen_shannon(p, p).tolist() == pytest.approx([0] * 6, abs=1e-7)
    one, other = torch.eye(2, dtype=F64)
    assert float(jensen_shannon(one, other)) == pytest.approx(1)
