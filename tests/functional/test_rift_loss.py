"""The RIFT family's functions against dense fp64 formulas and against their expectations."""

from __future__ import annotations

import pytest
import torch
from scipy.linalg import orthogonal_procrustes
from torch.func import vmap

from riftcli.functional import rift_loss
from riftcli.functional.covariance import eigenvalues
from riftcli.functional.rotations import ButterflyRotation, CayleyRotation, SoftRotation, most_factors

F64 = torch.float64
SIZES = [(6, 10), (40, 10)]  # fewer and more rows than columns


def rows(n: int, d: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator, dtype=F64) * torch.linspace(2, 0.3, d, dtype=F64)
    return x - x.mean(0)


def orthogonal(d: int, seed: int = 3) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(d, d, generator=torch.Generator().manual_seed(seed), dtype=F64))[0]


@pytest.mark.parametrize(("n", "d"), SIZES)
def test_the_parts_make_the_dense_distance(n, d):
    x, x0, q = rows(n, d, 1), rows(n, d, 2), orthogonal(d)
    sigma, sigma_0 = torch.cov(x.T), torch.cov(x0.T)
    dense = (sigma - q.T @ sigma_0 @ q).square().sum()
    own, target = rift_loss.squared_covariance(x), rift_loss.squared_covariance(x0)
    torch.testing.assert_close(own + target - 2 * rift_loss.covariance_overlap(x @ q.T, sigma_0), dense)
    torch.testing.assert_close(own + target - 2 * rift_loss.paired_overlap(x @ q.T, x0), dense)


@pytest.mark.parametrize(("n", "d"), SIZES)
def test_a_free_scale_is_the_least_squares_one(n, d):
    x, x0 = rows(n, d, 1), rows(n, d, 2)
    sigma, sigma_0 = torch.cov(x.T), torch.cov(x0.T)
    best = (sigma * sigma_0).sum() / sigma_0.square().sum()
    own, overlap, target = (sigma * sigma).sum(), (sigma * sigma_0).sum(), (sigma_0 * sigma_0).sum()
    torch.testing.assert_close(rift_loss.scaled_distance(own, overlap, target), (sigma - best * sigma_0).square().sum())
    assert rift_loss.scaled_distance(own, -overlap, target) == own  # no negative scale


@pytest.mark.parametrize(("n", "d"), SIZES)
def test_the_procrustes_distance_is_that_of_the_best_rotation(n, d):
    x, x0 = rows(n, d, 1), rows(n, d, 2)
    q, nuclear = orthogonal_procrustes(x0.numpy(), x.numpy())
    best = (x - x0 @ torch.from_numpy(q)).square().sum()
    torch.testing.assert_close(rift_loss.procrustes_distance(x, x0), best)
    assert float(rift_loss.nuclear_overlap(x, x0)) == pytest.approx(nuclear, rel=1e-9)
    scale = nuclear / float(x0.square().sum())
    free = (x - scale * x0 @ torch.from_numpy(q)).square().sum()
    torch.testing.assert_close(rift_loss.procrustes_distance(x, x0, free_scale=True), free)


@pytest.mark.parametrize(("n", "d"), SIZES)
def test_the_gradient_of_the_procrustes_distance_holds_q_fixed(n, d):
    """At the best Q its own change adds nothing: the gradient is 2 (X - X_0 Q)."""
    x, x0 = rows(n, d, 1).requires_grad_(), rows(n, d, 2)
    rift_loss.procrustes_distance(x, x0).backward()
    q = torch.from_numpy(orthogonal_procrustes(x0.numpy(), x.detach().numpy())[0])
    torch.testing.assert_close(x.grad, 2 * (x.detach() - x0 @ q), rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize(("n", "d"), SIZES)
def test_the_feature_distance_is_the_plain_one_or_that_at_the_best_scale(n, d):
    x, x0 = rows(n, d, 1), rows(n, d, 2)
    torch.testing.assert_close(rift_loss.feature_distance(x, x0), sum((a - b) @ (a - b) for a, b in zip(x, x0, strict=True)))
    near = 0.3 * x + x0
    scale = torch.linalg.lstsq(x0.reshape(-1, 1), near.reshape(-1, 1)).solution
    torch.testing.assert_close(rift_loss.feature_distance(near, x0, free_scale=True), (near - scale * x0).square().sum())
    assert rift_loss.feature_distance(-x0, x0, free_scale=True) == x0.square().sum()  # no negative scale


def test_rotated_features_cost_nothing_by_procrustes_and_by_spectrum():
    x0, q = rows(30, 8, 1), orthogonal(8)
    assert float(rift_loss.procrustes_distance(x0 @ q, x0)) == pytest.approx(0, abs=1e-9)
    assert float(rift_loss.spectral_distance(eigenvalues(x0 @ q), eigenvalues(x0))) == pytest.approx(0, abs=1e-9)
    shuffled = x0[torch.randperm(30, generator=torch.Generator().manual_seed(0))]
    assert float(rift_loss.spectral_distance(eigenvalues(shuffled), eigenvalues(x0))) == pytest.approx(0, abs=1e-9)
    assert float(rift_loss.procrustes_distance(shuffled, x0)) > 0.5 * float(x0.square().sum())  # equal covariance, other samples


# ---- expectations

DIM = 5
SCALES = torch.linspace(1.5, 0.4, DIM, dtype=F64)


def drawn(n: int, batches: int) -> torch.Tensor:
    """(batches, n, DIM) Gaussian features with a mean far from zero."""
    generator = torch.Generator().manual_seed(n)
    mixing = torch.eye(DIM, dtype=F64) + 0.3 * torch.randn(DIM, DIM, generator=torch.Generator().manual_seed(0), dtype=F64)
    return torch.randn(batches, n, DIM, generator=generator, dtype=F64) * SCALES @ mixing + 3, (mixing.T * SCALES**2) @ mixing


@pytest.mark.parametrize("n", [4, 8, 32, 128])
def test_the_debiased_square_is_right_on_average_and_the_plugin_one_is_not(n):
    x, true = drawn(n, 400_000 // n)
    exact, m = float(true.square().sum()), n - 1
    debiased = vmap(rift_loss.squared_covariance_debiased)(x)
    error = float(debiased.std() / len(x) ** 0.5)
    assert float(debiased.mean()) == pytest.approx(exact, abs=4 * error)
    assert error < 0.05 * exact
    plugin = vmap(rift_loss.squared_covariance)(x - x.mean(1, keepdim=True))
    floor = exact * (1 + 1 / m) + float(true.trace()) ** 2 / m  # methods 4.6
    assert float(plugin.mean()) == pytest.approx(floor, abs=4 * float(plugin.std() / len(x) ** 0.5))


@pytest.mark.parametrize("n", [4, 8, 32, 128])
def test_the_gradient_of_the_debiased_loss_is_right_on_average(n):
    """With f = z A the true loss is ||A^T A - S_0||^2, whose gradient for A is known."""
    generator = torch.Generator().manual_seed(5)
    sigma_0 = torch.diag(torch.linspace(1, 2, DIM, dtype=F64))
    a = torch.randn(DIM, DIM, generator=generator, dtype=F64)
    z = torch.randn(400_000 // n, n, DIM, generator=generator, dtype=F64)
    wanted = a.clone().requires_grad_()
    (wanted.T @ wanted - sigma_0).square().sum().backward()

    def of_batch(mixing, batch):
        x = batch @ mixing
        x = x - x.mean(0)
        return rift_loss.squared_covariance_debiased(x) - 2 * rift_loss.covariance_overlap(x, sigma_0)

    grads = vmap(torch.func.grad(of_batch), in_dims=(None, 0))(a, z)
    error = grads.std(0) / len(z) ** 0.5
    assert bool(((grads.mean(0) - wanted.grad).abs() < 4.5 * error).all())
    assert float(error.max()) < 0.1 * float(wanted.grad.abs().max())


@pytest.mark.parametrize("n", [4, 32])
def test_the_debiased_mean_difference_is_right_on_average(n):
    x, true = drawn(n, 200_000 // n)
    target = torch.full((DIM,), 2.5, dtype=F64)
    exact = DIM * 0.25
    debiased = vmap(lambda batch: rift_loss.squared_mean_difference(batch, target, debiased=True))(x)
    assert float(debiased.mean()) == pytest.approx(exact, abs=4 * float(debiased.std() / len(x) ** 0.5))
    plain = vmap(lambda batch: rift_loss.squared_mean_difference(batch, target))(x)
    assert float(plain.mean()) == pytest.approx(exact + float(true.trace()) / n, abs=4 * float(plain.std() / len(x) ** 0.5))


# ---- rotations


@pytest.mark.parametrize(
    "make",
    [
        lambda: CayleyRotation(24),
        lambda: ButterflyRotation(24, 4),
        lambda: ButterflyRotation(24, 4, 2),
        lambda: ButterflyRotation(24, 2, 3),
    ],
)
def test_a_rotation_starts_at_the_identity_and_stays_orthogonal(make):
    rotation = make()
    assert torch.equal(rotation.matrix(), torch.eye(24))
    assert float(rotation.distance_from_identity()) == 0
    rotation.weight.data.normal_(0, 0.5, generator=torch.Generator().manual_seed(0))
    assert float(rotation.orthogonality_error()) < 1e-5
    assert float(rotation.distance_from_identity()) > 0.1
    x = torch.randn(7, 24, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(rotation.rotate(x), x @ rotation.matrix().T, rtol=1e-4, atol=1e-5)
    assert rotation.constraint() is None


def test_butterfly_factors_mix_what_one_block_cannot():
    one, more = ButterflyRotation(24, 4), ButterflyRotation(24, 4, 2)
    for rotation in (one, more):
        rotation.weight.data.normal_(0, 0.5, generator=torch.Generator().manual_seed(0))
    filled = [int((rotation.matrix().abs() > 1e-6).sum(1).max()) for rotation in (one, more)]
    assert filled == [4, 8]
    assert most_factors(384, 32) == 3
    assert most_factors(24, 4) == 2


def test_a_soft_rotation_is_free_below_its_threshold():
    """lambda-orthogonality, Eq. 6, and dL/dW = dL/dx 2 (W W^T - I) W / x."""
    soft = SoftRotation(6, threshold=1.0).double()
    soft.constraint().backward()
    assert not soft.weight.grad.any()  # W = I
    soft.weight.data += 0.2 * torch.randn(6, 6, generator=torch.Generator().manual_seed(0), dtype=F64)
    w = soft.weight.detach()
    gap = w @ w.T - torch.eye(6, dtype=F64)
    x = torch.linalg.matrix_norm(gap)
    gate = torch.sigmoid(10 * (x - 1.0))
    torch.testing.assert_close(soft.constraint().detach(), gate * x)
    soft.weight.grad = None
    soft.constraint().backward()
    torch.testing.assert_close(soft.weight.grad, (gate + 10 * x * gate * (1 - gate)) * 2 * gap @ w / x)
    assert SoftRotation(512).threshold == pytest.approx(12)
    assert SoftRotation(768).threshold == pytest.approx(0.53 * 768**0.5, rel=1e-3)
    far = SoftRotation(6, threshold=100.0).double()
    far.weight.data.copy_(w)
    assert float(far.constraint()) < 1e-30
