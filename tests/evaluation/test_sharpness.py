"""Sharpness: of a quadratic, and of real finished runs."""

from __future__ import annotations

import math
import shutil

import numpy as np
import pytest
import torch
from evaluation_runs import read, table

import riftcli
from riftcli.data.datasets.digits import Digits
from riftcli.data.transforms import EvalTransform, Preprocessing
from riftcli.functional.sharpness import Ascent, measure


def quadratic(curvature: list[float], start: list[float]):
    """A loss with known geometry: sum of curvature * w^2 / 2 at w = start."""
    model = torch.nn.Module()
    model.w = torch.nn.Parameter(torch.tensor(start))
    scale = torch.tensor(curvature)

    def evaluate(with_gradient: bool) -> float:
        model.zero_grad(set_to_none=True)
        loss = (scale * model.w.square()).sum() / 2
        if with_gradient:
            loss.backward()
        return float(loss.detach())

    return model, evaluate


def test_sharpness_of_a_quadratic_is_known():
    model, evaluate = quadratic([1.0, 1.0], [3.0, 4.0])
    before = model.w.detach().clone()
    for method in ("sam", "pga"):
        found = measure(model, evaluate, Ascent(method, rho=0.5))
        assert found.loss == pytest.approx(12.5)
        assert found.value == pytest.approx((5.5**2 - 25) / 2, rel=1e-5)  # straight up: |w| grows by rho
        assert found.gradient_norm == pytest.approx(5)
    assert torch.equal(model.w, before)
    assert model.w.grad is None


def test_projected_ascent_finds_more_than_one_step_where_the_gradient_turns():
    model, evaluate = quadratic([100.0, 1.0], [0.0001, 1.0])  # the steep direction hardly shows in the gradient
    one = measure(model, evaluate, Ascent("sam", rho=0.5)).value
    several = measure(model, evaluate, Ascent("pga", rho=0.5, steps=40)).value
    best = max(
        (100 * (0.0001 + 0.5 * math.sin(a)) ** 2 + (1 + 0.5 * math.cos(a)) ** 2) / 2 - 0.5 - 100 * 1e-8 / 2
        for a in np.linspace(0, 2 * math.pi, 10_000)
    )
    assert one < several <= best * (1 + 1e-5)
    assert several > 0.95 * best


def test_random_points_lie_on_the_sphere_and_are_seeded():
    model, evaluate = quadratic([1.0, 1.0, 1.0], [1.0, 0.0, 0.0])
    found = measure(model, evaluate, Ascent("random", rho=0.1, draws=200, seed=1))
    assert found.visited == 200
    assert 0.9 * (1.1**2 - 1) / 2 < found.value <= (1.1**2 - 1) / 2 + 1e-6
    assert found == measure(model, evaluate, Ascent("random", rho=0.1, draws=200, seed=1))


def test_adaptive_sharpness_does_not_change_when_weights_are_rescaled():
    def product(a: float, b: float) -> float:
        model = torch.nn.Module()
        model.a, model.b = torch.nn.Parameter(torch.tensor([a])), torch.nn.Parameter(torch.tensor([b]))

        def evaluate(with_gradient: bool) -> float:
            model.zero_grad(set_to_none=True)
            loss = (model.a * model.b - 1).square().sum()
            if with_gradient:
                loss.backward()
            return float(loss.detach())

        return measure(model, evaluate, Ascent("sam", rho=0.05, adaptive=True)).value

    assert product(2.0, 3.0) == pytest.approx(product(0.2, 30.0), rel=1e-4)


def test_weights_come_back_even_when_the_loss_fails():
    model, evaluate = quadratic([1.0], [2.0])
    calls = []

    def failing(with_gradient: bool) -> float:
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("out of memory")
        return evaluate(with_gradient)

    model.w.requires_grad_(False)
    with pytest.raises(RuntimeError):
        measure(model, failing, Ascent())
    assert model.w.tolist() == [2.0]
    assert not model.w.requires_grad


def test_sharpness_of_a_run_against_a_loop_by_hand(rift, run):
    code, out, err = rift("sharpness", "--run", run, "--json")
    assert code == 0, err
    (row,) = read(out)["rows"]
    vit = riftcli.load(str(run))
    from riftcli.data.holdout import limit

    samples = limit(Digits().load("test"), 60, 0)
    prepare = Preprocessing.of_model(vit, 16, 1.0)
    images = prepare.normalise(torch.stack([EvalTransform(prepare)(samples.read(i)) for i in range(60)]))
    targets = torch.from_numpy(samples.targets)

    def loss() -> torch.Tensor:
        """Batch by batch, summed in fp64: of a loss of 29 one fp32 number has no sixth decimal."""
        pairs = zip(images.split(16), targets.split(16), strict=True)
        parts = [torch.nn.functional.cross_entropy(vit(x), y, reduction="none").sum() / len(images) for x, y in pairs]
        return torch.stack(parts).double().sum()

    base = loss()
    gradients = torch.autograd.grad(base, list(vit.parameters()))
    norm = torch.sqrt(sum(g.double().square().sum() for g in gradients))
    with torch.no_grad():
        for p, g in zip(vit.parameters(), gradients, strict=True):
            p += (0.01 * g / norm).float()
    assert row["loss"] == pytest.approx(float(base.detach()), abs=1e-6)
    assert row["gradient_norm"] == pytest.approx(float(norm), rel=1e-4)
    assert row["sharpness"] == pytest.approx(float(loss() - base), rel=1e-3)
    assert row["first_order"] == pytest.approx(0.01 * float(norm), rel=1e-4)


def test_sharpness_of_several_runs_prints_the_three_blocks(rift, trained, tmp_path):
    runs = [shutil.copytree(trained / name, tmp_path / name) for name in ("full", "lora")]
    code, _, err = rift("sharpness", "--run", runs[0], "--run", runs[1], "--out", "all")
    assert code == 0, err
    titles = [line.strip() for line in err.splitlines() if line.strip().endswith("(rho 0.01)")]
    assert titles == ["highest loss, at least (rho 0.01)", "loss (rho 0.01)", "sharpness, at least (rho 0.01)"]
    assert [row["group"] for row in table(tmp_path / "all")] == ["full", "full", "lora"]


def test_sharpness_needs_a_radius(rift, run):
    assert rift("sharpness", "--run", run, "--rho", 0)[::2] == (2, "error: --rho 0: must be above 0\n")
