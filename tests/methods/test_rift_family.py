"""Every member of the RIFT family, and the regularizers beside it: what they cost, and what they refuse."""

from __future__ import annotations

import pytest
import torch

from riftcli.errors import UsageError
from riftcli.functional.covariance import covariance
from riftcli.methods.regularizers.difference_vector import DifferenceVector
from riftcli.methods.regularizers.feature_distill import FeatureDistill
from riftcli.methods.regularizers.ldifs import Ldifs
from riftcli.methods.regularizers.rift import Rift
from riftcli.protocols import RegularizerContext

D = 12
CPU = torch.device("cpu")
MEMBERS = {
    "plugin": {},
    "debiased": {"estimator": "debiased"},
    "paired": {"estimator": "paired"},
    "ema": {"estimator": "ema"},
    "fixed": {"q": "fixed"},
    "paired fixed": {"estimator": "paired", "q": "fixed"},
    "spectral": {"q": "spectral"},
    "paired spectral": {"q": "spectral", "estimator": "paired"},
    "ema spectral": {"q": "spectral", "estimator": "ema"},
    "procrustes": {"q": "procrustes"},
    "procrustes alpha": {"q": "procrustes", "alpha": "closed"},
    "features": {"compare": "features", "q": "fixed", "mean": False},
    "features alpha": {"compare": "features", "q": "fixed", "alpha": "closed"},
    "features mean": {"compare": "features", "q": "fixed"},
    "oft": {"rotation": "oft", "block_size": 4},
    "boft": {"rotation": "boft", "block_size": 2},
    "lambda": {"rotation": "lambda_orthogonal"},
    "paired lambda": {"rotation": "lambda_orthogonal", "estimator": "paired"},
    "alpha": {"alpha": "learn"},
    "closed": {"alpha": "closed"},
    "ema closed": {"alpha": "closed", "estimator": "ema"},
    "mean": {"mean": True},
    "mean alpha": {"mean": True, "alpha": "learn"},
    "paired mean": {"mean": True, "estimator": "paired"},
    "debiased mean": {"mean": True, "estimator": "debiased"},
    "ema mean": {"mean": True, "estimator": "ema", "alpha": "learn"},
}


def features(n: int, seed: int, d: int = D) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator) * torch.linspace(2, 0.3, d) + 1.0


def build(member: str | dict, pretrained: torch.Tensor | None = None):
    config = Rift(**(MEMBERS[member] if isinstance(member, str) else member))
    bound = config.build(RegularizerContext(D, CPU, lambda: features(200, 1) if pretrained is None else pretrained))
    for seed, parameter in enumerate(bound.parameters()):
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed))
    return bound


@pytest.mark.parametrize("member", MEMBERS)
def test_state_comes_back_bitwise(member):
    one, two = build(member), build(member, features(90, 9))
    for parameter in two.parameters():
        parameter.data.mul_(0.5)
    x, x0 = features(20, 2), features(20, 3)
    if hasattr(one, "observe"):
        one.observe(x, x0)
    saved = {name: value.clone() for name, value in one.state_dict().items()}
    two.load_state_dict(saved)
    assert torch.equal(one.loss(x, x0), two.loss(x, x0))
    assert one.diagnostics(x, x0) == two.diagnostics(x, x0)


@pytest.mark.parametrize("member", MEMBERS)
def test_loss_and_gradient_are_finite_fp32_and_reach_what_trains(member):
    bound, x = build(member), features(20, 2).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = bound.loss(x, features(20, 3))
    assert loss.dtype == torch.float32
    loss.backward()
    assert torch.isfinite(x.grad).all() and x.grad.any()
    for parameter in bound.parameters():
        assert torch.isfinite(parameter.grad).all() and parameter.grad.any()
    report = bound.diagnostics(x.detach(), features(20, 3))
    assert all(isinstance(value, float) for value in report.values())
    assert "trace_ratio" in report


PAIRED = ["paired fixed", "paired spectral", "procrustes", "procrustes alpha", "features", "features alpha"]


@pytest.mark.parametrize("member", PAIRED)
@pytest.mark.parametrize("n", [4, 32])
def test_paired_members_cost_nothing_where_nothing_moved_and_one_when_all_is_lost(member, n):
    bound, x = build(member), features(n, 2)
    assert float(bound.loss(x, x)) == pytest.approx(0, abs=2e-5)
    if "alpha" not in member:
        assert float(bound.loss(0 * x, x)) == pytest.approx(1, rel=1e-5)
    assert float(bound.loss(1.5 * x + 3, x)) > 0.1 or "alpha" in member
    if "procrustes" in member:  # a turn is free
        turn = torch.linalg.qr(torch.randn(D, D, generator=torch.Generator().manual_seed(0)))[0]
        assert float(bound.loss(x @ turn - 2, x)) == pytest.approx(0, abs=2e-5)


@pytest.mark.parametrize("estimator", ["plugin", "paired"])
def test_soft_rotations_expand_the_whole_square(estimator):
    """tr(M^2) is no constant when Q is not orthogonal."""
    bound = build({"rotation": "lambda_orthogonal", "estimator": estimator, "normalize": "raw", "soft_threshold": 1e6})
    x, x0 = features(30, 2), features(30, 3)
    w = bound.rotation.weight.detach().double()
    sigma_0 = torch.cov(x0.T.double()) if estimator == "paired" else covariance(features(200, 1))
    dense = (torch.cov(x.T.double()) - w.T @ sigma_0 @ w).square().sum()
    assert float(bound.loss(x, x0)) == pytest.approx(float(dense), rel=1e-4)


def test_alpha_and_mean_enter_as_in_the_paper():
    """||Sigma - a^2 Q^T Sigma_0 Q||^2 + ||mu - a Q^T mu_0||^2."""
    bound = build({"alpha": "learn", "mean": True, "normalize": "raw"})
    x, start = features(30, 2), features(200, 1).double()
    q, alpha = bound.rotation.matrix().detach().double(), float(bound.target.alpha())
    sigma = torch.cov(x.T.double()) - alpha**2 * q.T @ torch.cov(start.T) @ q
    mean = x.double().mean(0) - alpha * (q.T @ start.mean(0))
    assert alpha != 1
    assert float(bound.loss(x)) == pytest.approx(float(sigma.square().sum() + mean.square().sum()), rel=1e-4)
    fresh = Rift(alpha="learn").build(RegularizerContext(D, CPU, lambda: features(200, 1)))
    assert float(fresh.target.alpha()) == pytest.approx(1, abs=1e-6)


def test_the_debiased_member_is_the_plugin_one_without_its_floor():
    start = features(20_000, 1)
    plugin, debiased = build({"q": "fixed"}, start), build({"q": "fixed", "estimator": "debiased"}, start)
    same = [features(32, seed) for seed in range(300)]
    floors = [float(torch.stack([bound.loss(x) for x in same]).mean()) for bound in (plugin, debiased)]
    assert floors[0] > 0.1
    assert abs(floors[1]) < 0.02


# ---- the running covariance


def test_the_running_moments_are_averages_of_f_and_f_f():
    bound = build("ema")
    decay = 0.9
    start = features(200, 1).double()
    mean, second = start.mean(0), torch.cov(start.T) + torch.outer(start.mean(0), start.mean(0))
    for seed in range(5):
        x = features(16, seed)
        bound.observe(x)
        mean = decay * mean + (1 - decay) * x.double().mean(0)
        second = decay * second + (1 - decay) * x.double().T @ x.double() / 16
    torch.testing.assert_close(bound.mean.double(), mean, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(bound.covariance.double(), second - torch.outer(mean, mean), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("n", [4, 32, 128])
def test_the_running_covariance_is_nearly_unbiased_at_any_batch_size(n):
    """Its expectation is S (1 - (1 - d) / ((1 + d) n)): the batch's own mean is not subtracted but the running one."""
    decay, dim = 0.9, 4
    scale = torch.linspace(1.5, 0.5, dim)
    bound = Rift(estimator="ema", q="fixed").build(RegularizerContext(dim, CPU, lambda: features(50, 0, dim)))
    generator = torch.Generator().manual_seed(n)
    total, count = torch.zeros(dim, dtype=torch.float64), 0
    for step in range(6000):
        bound.observe(torch.randn(n, dim, generator=generator) * scale + 2)
        if step >= 100:
            total, count = total + bound.covariance.diagonal().double(), count + 1
    expected = scale.double().square() * (1 - (1 - decay) / ((1 + decay) * n))
    torch.testing.assert_close(total / count, expected, rtol=4 * (2 / (5900 * n)) ** 0.5, atol=0)


def test_the_running_loss_adds_up_over_parts_and_has_the_full_pull():
    bound = build("ema mean")
    for seed in range(3):
        bound.observe(1.3 * features(16, seed) + 0.2)
    x = features(12, 7).requires_grad_()
    bound.loss(x).backward()
    whole, of_q = x.grad.clone(), [parameter.grad.clone() for parameter in bound.parameters()]
    x.grad = None
    for parameter in bound.parameters():
        parameter.grad = None
    for part in x.split(3):
        (bound.loss(part) / 4).backward()
    torch.testing.assert_close(x.grad, whole)
    for parameter, grad in zip(bound.parameters(), of_q, strict=True):
        torch.testing.assert_close(parameter.grad, grad)

    plain = build({"estimator": "ema", "q": "fixed", "normalize": "raw"})
    plain.observe(1.5 * features(64, 3))
    y = features(12, 7).requires_grad_()
    plain.loss(y).backward()
    error = plain.covariance - covariance(features(200, 1)).float()
    torch.testing.assert_close(y.grad, 4 / 12 * (y.detach() - plain.mean) @ error)
    assert float(plain.loss(y)) == pytest.approx(float(error.square().sum()), rel=1e-5)


# ---- others


def test_the_difference_vector_may_be_anything_but_must_be_one():
    config = DifferenceVector(strength=1.0, distance="raw", decay=0.0)
    bound = config.build(RegularizerContext(D, CPU, lambda: None))
    x = features(20, 2)
    assert float(bound.loss(x + torch.arange(D), x)) == pytest.approx(0, abs=1e-6)
    moved = x + features(20, 3)
    assert float(bound.loss(moved, x)) == pytest.approx(float(features(20, 3).var(0, correction=0).sum()), rel=1e-4)


def test_the_running_mean_of_differences_starts_at_zero_and_is_saved():
    config = DifferenceVector()
    assert (config.strength, config.decay, config.distance) == (1000.0, 0.99, "unit")
    bound = config.build(RegularizerContext(D, CPU, lambda: None))
    x, x0 = features(20, 2), features(20, 3)
    unit = torch.nn.functional.normalize
    difference = unit(x) - unit(x0)
    mean = 0.01 * difference.mean(0)
    expected = 1000 * (difference - mean).square().sum(1).mean()
    assert float(bound.loss(x, x0)) == pytest.approx(float(expected), rel=1e-5)
    assert not bound.mean.any()  # a loss alone changes nothing
    bound.observe(x, x0)
    torch.testing.assert_close(bound.mean, mean)
    other = config.build(RegularizerContext(D, CPU, lambda: None))
    other.load_state_dict(bound.state_dict())
    assert torch.equal(other.loss(x, x0), bound.loss(x, x0))


def test_comparing_features_is_the_difference_vector_with_the_mean_of_the_batch():
    bound, relative = build("features"), DifferenceVector(strength=1.0, distance="relative", decay=0.0)
    x, x0 = features(20, 2), features(20, 3)
    other = relative.build(RegularizerContext(D, CPU, lambda: None))
    torch.testing.assert_close(bound.loss(x, x0), other.loss(x, x0))
    assert float(bound.loss(x0 + 5, x0)) == pytest.approx(0, abs=1e-6)


def test_comparing_features_with_their_mean_is_feature_distillation():
    bound = build({"compare": "features", "q": "fixed"})
    other = FeatureDistill().build(RegularizerContext(D, CPU, lambda: None))
    x, x0 = features(20, 2), features(20, 3) - 1
    torch.testing.assert_close(bound.loss(x, x0), other.loss(x, x0))
    raw = {"compare": "features", "q": "fixed", "normalize": "raw"}
    assert float(build(raw).loss(x, x0)) == pytest.approx(float((x - x0).square().sum() / 19), rel=1e-6)


def test_ldifs_is_a_mean_over_depths_of_unit_features():
    bound = Ldifs(strength=10.0, layers=3).build(RegularizerContext(4, CPU, lambda: None))
    x, x0 = features(6, 1), features(6, 2)
    unit = torch.nn.functional.normalize
    parts = [(unit(a) - unit(b)).square().sum(1).mean() for a, b in zip(x.split(4, 1), x0.split(4, 1), strict=True)]
    assert float(bound.loss(x, x0)) == pytest.approx(10 * float(sum(parts)) / 3, rel=1e-5)


# ---- refused


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"q": "procrustes", "estimator": "debiased"}, "estimator: features are compared on the same samples"),
        ({"q": "procrustes", "compare": "covariances"}, "compare: q procrustes is the best rotation of features"),
        ({"compare": "features"}, "q: features are compared with q procrustes or fixed, not learn"),
        ({"q": "procrustes", "mean": True}, "mean: needs a Q that is known, and q procrustes only knows the distance"),
        ({"compare": "features", "q": "fixed", "mean": True, "alpha": "closed"}, "mean: the closed alpha is that of"),
        ({"q": "spectral", "estimator": "debiased"}, "estimator: eigenvalues of a batch cannot be debiased"),
        ({"q": "procrustes", "alpha": "learn"}, "alpha: comparing features it is fixed or closed"),
        ({"q": "spectral", "mean": True}, "mean: needs a Q that is known, and q spectral only knows the distance"),
        ({"mean": True, "alpha": "closed"}, "mean: the closed alpha is that of the covariance; with mean use alpha fixed"),
        ({"q": "fixed", "rotation": "oft"}, "rotation: only a learned Q is parametrised; with q fixed leave it out"),
        ({"rotation": "boft", "block_size": 3}, "block_size: must be 2 or more, and even for boft"),
        ({"ema_decay": 1.0}, "ema_decay: must be between 0 and 1"),
        ({"factors": 0}, "factors: must be 1 or more"),
        ({"soft_threshold": -1.0}, "soft_threshold: must be 0 or more"),
    ],
)
def test_combinations_that_make_no_sense_are_refused(fields, message):
    with pytest.raises(ValueError) as caught:
        Rift(**fields)
    assert str(caught.value).startswith(message)


def test_blocks_that_do_not_fit_the_features_are_refused():
    for fields, what in (
        ({"rotation": "oft", "block_size": 5}, "5 does not divide the 12 features of this model"),
        ({"rotation": "boft", "block_size": 4, "factors": 3}, "4 with 3 factors does not fit the 12 features of this model"),
    ):
        with pytest.raises(UsageError) as caught:
            build(fields)
        assert str(caught.value) == f"regularizer.block_size: {what}"


def test_the_estimator_is_written_out():
    assert Rift().estimator == "plugin"
    assert (Rift(q="procrustes").compare, Rift(q="procrustes").estimator) == ("features", "paired")
    assert [Rift().mean, Rift(q="fixed").mean, Rift(q="procrustes").mean, Rift(compare="features", q="fixed").mean] == [
        False,
        False,
        False,
        True,
    ]
    assert (Rift().compare, Rift(compare="features", q="fixed").estimator) == ("covariances", "paired")
