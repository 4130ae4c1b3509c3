"""RIFT and RSC against dense fp64 references and their closed forms."""

from __future__ import annotations

import math

import pytest
import torch

from riftcli.functional.cka import linear_cka
from riftcli.functional.covariance import covariance
from riftcli.methods.regularizers.rift import Rift
from riftcli.methods.regularizers.rift_penalty import RiftPenalty
from riftcli.methods.regularizers.rsc import Rsc
from riftcli.protocols import RegularizerContext

F64 = torch.float64


def features(n: int, d: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator, dtype=F64) * torch.linspace(2, 0.3, d, dtype=F64)


def penalty(config: Rift, sigma_0: torch.Tensor, q_weight: torch.Tensor | None = None) -> RiftPenalty:
    bound = RiftPenalty(config, config.target(len(sigma_0), sigma_0.float()))
    if bound.rotation is not None and q_weight is not None:
        bound.rotation.weight.data.copy_(q_weight)
    return bound


def dense(x: torch.Tensor, sigma_0: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """The formula of the paper, letter by letter."""
    sigma = torch.cov(x.T)
    return (sigma - q.T @ sigma_0 @ q).square().sum()


@pytest.mark.parametrize(("n", "d"), [(6, 10), (40, 10)])
@pytest.mark.parametrize("q", ["learn", "fixed"])
def test_trace_form_equals_the_dense_formula(n, d, q):
    sigma_0 = torch.cov(features(200, d, 1).T)
    weight = 0.3 * torch.randn(d, d, generator=torch.Generator().manual_seed(5), dtype=F64)
    bound = penalty(Rift(normalize="raw", q=q), sigma_0, weight)
    x = features(n, d, 2)
    matrix = bound.rotation.matrix().detach().double() if bound.rotation else torch.eye(d, dtype=F64)
    # features enter as fp32, hence the tolerance
    assert float(bound.loss(x)) == pytest.approx(float(dense(x, sigma_0, matrix)), rel=1e-5)


@pytest.mark.parametrize(("n", "d"), [(6, 10), (40, 10)])
def test_gradients_equal_autograd_through_the_dense_formula(n, d):
    sigma_0 = torch.cov(features(200, d, 1).T).float()
    weight = 0.3 * torch.randn(d, d, generator=torch.Generator().manual_seed(5))
    bound = penalty(Rift(normalize="raw"), sigma_0, weight)
    x = features(n, d, 2).float().requires_grad_()
    bound.loss(x).backward()
    mine_x, mine_w = x.grad.clone(), bound.rotation.weight.grad.clone()

    x64 = x.detach().double().requires_grad_()
    w64 = weight.double().requires_grad_()
    eye = torch.eye(d, dtype=F64)
    skew = w64 - w64.T
    q = torch.linalg.inv(eye + skew) @ (eye - skew)
    dense(x64, sigma_0.double(), q).backward()
    torch.testing.assert_close(mine_x.double(), x64.grad, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(mine_w.double(), w64.grad, rtol=1e-3, atol=1e-4)


def test_feature_gradient_is_the_closed_form():
    """dL/dF = 4 / (n - 1) * F~ E with E = Sigma - Sigma_0 (methods: gradients of the RIFT loss)."""
    sigma_0 = torch.cov(features(200, 8, 1).T).float()
    bound = penalty(Rift(normalize="raw", q="fixed"), sigma_0)
    x = features(30, 8, 2).float().requires_grad_()
    bound.loss(x).backward()
    centred = (x - x.mean(0)).detach()
    expected = 4 / 29 * centred @ (torch.cov(x.detach().T) - sigma_0)
    torch.testing.assert_close(x.grad, expected, rtol=1e-4, atol=1e-5)


def test_the_same_features_cost_nothing_and_a_scale_costs_its_square():
    x = features(50, 8).float()
    bound = penalty(Rift(), covariance(x).float())
    assert float(bound.loss(x)) == pytest.approx(0, abs=1e-5)
    assert float(bound.loss(2 * x)) == pytest.approx((2**2 - 1) ** 2, rel=1e-4)  # (c^2 - 1)^2, relative
    assert float(bound.loss(0 * x)) == pytest.approx(1, rel=1e-5)  # total collapse costs `strength`
    assert float(penalty(Rift(strength=0.5), covariance(x).float()).loss(0 * x)) == pytest.approx(0.5, rel=1e-5)


def test_the_spectral_bound_is_attained_by_the_best_rotation_and_by_none_below():
    d = 8
    sigma_0 = torch.cov(features(200, d, 1).T)
    generator = torch.Generator().manual_seed(4)
    turn = torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=F64))[0]
    x = features(60, d, 2) @ turn
    bound = penalty(Rift(), sigma_0.float())
    report = bound.diagnostics(x.float())
    assert report["spectral_bound"] <= report["similarity_relative"]
    values, u_0 = torch.linalg.eigh(sigma_0)
    values_x, u_x = torch.linalg.eigh(torch.cov(x.T))
    best = u_0 @ u_x.T  # Q* = U_0 U_theta^T pairs the sorted spectra
    attained = dense(x, sigma_0, best) / sigma_0.square().sum()
    assert report["spectral_bound"] == pytest.approx(float(attained), rel=1e-4)
    assert float(attained) == pytest.approx(float((values - values_x).square().sum() / sigma_0.square().sum()), rel=1e-9)


def test_learning_q_approaches_the_bound():
    d = 8
    sigma_0 = torch.cov(features(500, d, 1).T).float()
    small_turn = torch.matrix_exp(0.3 * torch.randn(d, d, generator=torch.Generator().manual_seed(1)).triu(1))
    small_turn = torch.linalg.qr(small_turn)[0]
    x = features(200, d, 1).float() @ small_turn
    bound = penalty(Rift(), sigma_0)
    optimizer = torch.optim.Adam(bound.parameters(), lr=0.02)
    first = bound.diagnostics(x)
    for _ in range(300):
        optimizer.zero_grad()
        bound.loss(x).backward()
        optimizer.step()
    last = bound.diagnostics(x)
    assert last["similarity_relative"] < 0.2 * first["similarity_relative"]
    assert last["similarity_relative"] >= last["spectral_bound"] - 1e-6
    assert last["q_distance"] > 0 == first["q_distance"]


def test_the_noise_floor_of_the_plugin_estimator():
    """E L_sim = ||Sigma||^2 / m + tr(Sigma)^2 / m with m = n - 1, although nothing has moved (methods 4.6)."""
    d, n = 16, 32
    scale = torch.linspace(2, 0.3, d, dtype=F64)
    sigma = torch.diag(scale.square())
    bound = penalty(Rift(q="fixed"), sigma.float())
    values = [float(bound.loss(features(n, d, seed))) for seed in range(600)]
    rank = float(torch.trace(sigma) ** 2 / sigma.square().sum())
    assert sum(values) / len(values) == pytest.approx((rank + 1) / (n - 1), rel=0.05)


def test_diagnostics_name_what_happened():
    x = features(100, 8).float()
    report = penalty(Rift(), covariance(x).float()).diagnostics(3 * x)
    assert set(report) == {
        "similarity_raw",
        "similarity_relative",
        "spectral_bound",
        "trace_ratio",
        "effective_rank",
        "q_distance",
    }
    assert report["trace_ratio"] == pytest.approx(9, rel=1e-4)


def test_loss_is_fp32_under_autocast():
    x = features(20, 8).float()
    bound = penalty(Rift(), covariance(x).float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert bound.loss(x.bfloat16()).dtype == torch.float32


def test_state_round_trip():
    x = features(50, 8).float()
    one = penalty(Rift(), covariance(x).float(), 0.1 * torch.randn(8, 8))
    two = penalty(Rift(), torch.eye(8))
    two.load_state_dict(one.state_dict())
    assert torch.equal(one.loss(2 * x), two.loss(2 * x))


def test_strength_zero_builds_nothing():
    def never() -> torch.Tensor:
        raise AssertionError("features must not be computed")

    context = RegularizerContext(8, torch.device("cpu"), never)
    assert Rift(strength=0).build(context) is None
    assert Rsc(strength=0).build(context) is None
    assert Rsc(hcs_lambda=1.0).build(context) is None


# ---- RSC


def test_rsc_is_one_minus_cka():
    x, y = features(30, 8, 1).float(), features(30, 8, 2).float()
    for estimator in ("biased", "debiased"):
        expected = 0.5 * (1 - linear_cka(x, y, debiased=estimator == "debiased"))
        assert float(Rsc(strength=0.5, estimator=estimator).penalty().loss(y, x)) == pytest.approx(float(expected), abs=1e-6)
    assert Rsc().penalty().diagnostics(x, x)["batch_cka"] == pytest.approx(1, abs=1e-6)
    assert float(Rsc().penalty().loss(x, x)) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(("hcs", "rsc"), [(0.2, 4.0), (0.4, 1.5), (0.5, 1.0), (0.6, 2 / 3), (0.8, 0.25), (0.9, 1 / 9)])
def test_hcs_coefficient_mapping(hcs, rsc):
    assert Rsc(hcs_lambda=hcs).weight == pytest.approx(rsc)


def test_gradient_of_hcs_is_lambda_times_gradient_of_rsc():
    x, reference = features(20, 6, 1).requires_grad_(), features(20, 6, 2)
    task = (x**2).sum()
    dissimilarity = 1 - linear_cka(reference, x)
    lam = 0.4
    hcs = torch.autograd.grad(lam * task + (1 - lam) * dissimilarity, x, retain_graph=True)[0]
    rsc = torch.autograd.grad(task + Rsc(hcs_lambda=lam).weight * dissimilarity, x)[0]
    torch.testing.assert_close(hcs, lam * rsc)


def test_wrong_values_are_refused():
    for make in (lambda: Rift(strength=-1), lambda: Rift(q_lr_scale=-1), lambda: Rsc(hcs_lambda=0.0), lambda: Rsc(strength=-1)):
        with pytest.raises(ValueError, match=": must be"):
            make()
    assert math.isclose(Rsc(strength=2.0).weight, 2.0)
