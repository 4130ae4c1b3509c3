"""The maths against slow, obvious references in fp64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from riftcli.functional.cka import StreamingCka, cka, linear_cka
from riftcli.functional.covariance import Covariance, centre, covariance, effective_rank, eigenvalues
from riftcli.functional.knn import knn_accuracy, nearest
from riftcli.functional.rotations import CayleyRotation

F64 = torch.float64


def rows(n: int, d: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    scale = torch.linspace(0.2, 3, d, dtype=F64)
    return torch.randn(n, d, generator=generator, dtype=F64) * scale + 5


def rotation(d: int, seed: int = 0) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(d, d, generator=torch.Generator().manual_seed(seed), dtype=F64))[0]


def slow_hsic_unbiased(k: np.ndarray, m: np.ndarray) -> float:
    """Song et al. 2012 Eq. 5, over explicit sums of distinct indices."""
    n = len(k)
    total = 0.0
    for i in range(n):
        for j in range(n):
            if i == j:
                continue
            total += k[i, j] * m[i, j]
    pairs = total / (n * (n - 1))
    triples = sum(k[i, j] * m[i, q] for i in range(n) for j in range(n) for q in range(n) if len({i, j, q}) == 3)
    quads = sum(
        k[i, j] * m[q, r] for i in range(n) for j in range(n) for q in range(n) for r in range(n) if len({i, j, q, r}) == 4
    )
    return pairs + quads / (n * (n - 1) * (n - 2) * (n - 3)) - 2 * triples / (n * (n - 1) * (n - 2))


def slow_cka(x: torch.Tensor, y: torch.Tensor) -> float:
    n = len(x)
    h = np.eye(n) - 1 / n
    k, m = h @ (x @ x.T).numpy() @ h, h @ (y @ y.T).numpy() @ h
    return (k * m).sum() / np.sqrt((k * k).sum() * (m * m).sum())


@pytest.mark.parametrize(("n", "d", "e"), [(40, 8, 5), (10, 30, 6), (9, 12, 20)])
def test_cka_equals_the_gram_definition(n, d, e):
    x, y = rows(n, d, 1), rows(n, e, 2)
    expected = slow_cka(x, y)
    assert cka(x, y, chunk=7) == pytest.approx(expected, abs=1e-10)
    assert float(linear_cka(x, y)) == pytest.approx(expected, abs=1e-8)
    assert cka(y, x) == pytest.approx(expected, abs=1e-10)


def test_cka_debiased_equals_sums_over_distinct_indices():
    x, y = rows(9, 6, 1), rows(9, 4, 2)
    k, m = (x @ x.T).numpy(), (y @ y.T).numpy()
    expected = slow_hsic_unbiased(k, m) / np.sqrt(slow_hsic_unbiased(k, k) * slow_hsic_unbiased(m, m))
    assert cka(x, y, debiased=True, chunk=4) == pytest.approx(expected, abs=1e-9)
    assert float(linear_cka(x, y, debiased=True)) == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize("debiased", [False, True])
def test_cka_ignores_rotation_scale_and_shift_but_not_the_samples(debiased):
    x = rows(60, 12)
    same = 3.0 * x @ rotation(12) + 2
    assert cka(x, x, debiased) == pytest.approx(1, abs=1e-12)
    assert cka(x, same, debiased) == pytest.approx(1, abs=1e-9)
    assert cka(x, x[torch.randperm(60, generator=torch.Generator().manual_seed(3))], debiased) < 0.5


def test_the_bias_is_as_large_as_documented_and_the_debiased_value_is_not():
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(128, 768, generator=generator, dtype=F64) for _ in range(2))
    assert cka(x, y) == pytest.approx(0.857, abs=0.01)
    assert abs(cka(x, y, debiased=True)) < 0.02


def test_cka_in_fp64_survives_features_far_from_zero():
    x = rows(500, 16) + 1e4
    assert cka(x, x @ rotation(16), chunk=64) == pytest.approx(1, abs=1e-6)


def test_cka_is_undefined_for_constant_features():
    constant = torch.ones(20, 3)
    assert cka(constant, rows(20, 4)) is None
    assert StreamingCka().biased() is None


def test_linear_cka_gradient():
    x = rows(7, 5).requires_grad_()
    assert torch.autograd.gradcheck(lambda a: linear_cka(a, rows(7, 4, 9)), (x,))
    assert torch.autograd.gradcheck(lambda a: linear_cka(a, rows(7, 4, 9), debiased=True), (x,))


def test_streamed_covariance_equals_numpy():
    x = rows(101, 7) * 100
    stream = Covariance(7)
    for part in x.split([1, 50, 3, 47]):
        stream.update(part)
    np.testing.assert_allclose(stream.value().numpy(), np.cov(x.numpy(), rowvar=False), rtol=1e-12)
    np.testing.assert_allclose(stream.mean.numpy(), x.mean(0).numpy(), rtol=1e-12)
    np.testing.assert_allclose(covariance(x, chunk=10).numpy(), stream.value().numpy(), rtol=1e-12)


@pytest.mark.parametrize(("n", "d"), [(20, 6), (5, 12)])
def test_eigenvalues_by_either_gram(n, d):
    x = rows(n, d)
    expected = torch.linalg.eigvalsh(torch.cov(x.T)).flip(0).clamp_min(0)
    torch.testing.assert_close(eigenvalues(centre(x)), expected, atol=1e-10, rtol=1e-10)


def test_effective_rank():
    assert float(effective_rank(torch.ones(10))) == pytest.approx(10)
    assert float(effective_rank(torch.tensor([5.0, 0, 0]))) == pytest.approx(1)


def test_cayley_is_orthogonal_and_rotates_without_forming_the_matrix():
    q = CayleyRotation(16).double()
    assert torch.equal(q.matrix(), torch.eye(16, dtype=F64))
    with torch.no_grad():
        q.weight.copy_(torch.randn(16, 16, generator=torch.Generator().manual_seed(0), dtype=F64))
    assert float(q.orthogonality_error()) < 1e-12
    x = rows(5, 16)
    torch.testing.assert_close(q.rotate(x), x @ q.matrix().T)
    assert float(q.distance_from_identity()) > 0.1


def test_cayley_stays_orthogonal_over_a_thousand_steps():
    torch.manual_seed(0)
    q = CayleyRotation(32)
    optimizer = torch.optim.Adam(q.parameters(), lr=1e-2)
    target = rotation(32).float()
    for _ in range(1000):
        optimizer.zero_grad()
        (q.matrix() - target).square().sum().backward()
        optimizer.step()
    assert float(q.orthogonality_error()) < 1e-5


def test_cayley_is_fp32_under_autocast():
    q = CayleyRotation(8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert q.matrix().dtype == torch.float32
        assert q.rotate(torch.randn(3, 8)).dtype == torch.float32


def test_knn_equals_scikit_learn():
    from sklearn.neighbors import KNeighborsClassifier

    bank, queries = rows(90, 6, 1).float(), rows(30, 6, 2).float()
    labels = torch.arange(90) % 4
    bank += labels[:, None] * 1.5
    targets = torch.arange(30) % 4
    queries += targets[:, None] * 1.5
    reference = KNeighborsClassifier(5, metric="cosine", weights=lambda d: np.exp((1 - d) / 0.07)).fit(bank, labels)
    assert knn_accuracy(bank, labels, queries, targets, k=5, chunk=7) == pytest.approx(reference.score(queries, targets))


@pytest.mark.parametrize("alone", [True, False])
@pytest.mark.parametrize("parts", [1, 3, 40])
def test_neighbours_in_parts_of_the_bank_are_those_in_all_of_it(alone, parts):
    """Of parts with fewer rows than neighbours too, and of more parts than rows."""
    generator = torch.Generator().manual_seed(0)
    bank = torch.randn(31, 4, generator=generator)
    queries, own = (bank, torch.arange(31)) if alone else (torch.randn(17, 4, generator=generator), None)
    whole = nearest(bank, queries, 30, chunk=5, own=own)
    found, first = None, 0
    for part in bank.tensor_split(parts):
        other = nearest(part, queries, 30, chunk=5, own=own, first=first)
        found, first = other if found is None else found.or_nearer(other), first + len(part)
    cosines = torch.nn.functional.cosine_similarity(queries[:, None].double(), bank[None].double(), dim=2)
    if alone:
        cosines.fill_diagonal_(-torch.inf)
    assert whole.index.equal(cosines.argsort(1, descending=True)[:, :30])
    assert found.index.equal(whole.index)
    torch.testing.assert_close(found.similarity, whole.similarity, rtol=0, atol=1e-6)


def test_knn_leave_one_out_never_sees_the_sample_itself():
    bank, labels = rows(40, 6).float(), torch.arange(40)
    assert knn_accuracy(bank, labels, k=1) == 0.0  # every label occurs once
    assert knn_accuracy(bank, labels, bank, labels, k=1) == 1.0
    assert knn_accuracy(bank, torch.zeros(40, dtype=torch.long), k=500) == 1.0  # k is clamped
