"""Steps of two-tower models: micro-batches give the gradients of the whole batch, for both towers and the scale."""

from __future__ import annotations

import pytest
import torch
from pairs import CASES, bound_step, pair_gradients


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("micro_batches", [2, 4])
def test_accumulated_pairs_equal_the_whole_batch(name, micro_batches):
    whole, parts = pair_gradients(name, 1, double=True), pair_gradients(name, micro_batches, double=True)
    assert len(whole) > 30
    for key, value in whole.items():
        got = parts[key.replace(f"/{name}/1/", f"/{name}/{micro_batches}/")]
        torch.testing.assert_close(got, value, rtol=1e-8, atol=1e-10, msg=lambda m, key=key: f"{key}: {m}")


@pytest.mark.parametrize("name", ["flyp", "replay", "dive_mean_gradient", "tracer", "prompts"])
def test_the_gradient_is_that_of_the_loss(name):
    """Against a difference quotient along a random direction, in fp64; replay and FLYP train the scale too."""
    step, model, batches = bound_step(name, 1, double=True)
    trained = [p for p in model.parameters() if p.requires_grad]
    generator = torch.Generator().manual_seed(0)
    direction = [torch.randn(p.shape, generator=generator).double() for p in trained]
    result = step(batches)
    slope = sum(float((p.grad * d).sum()) for p, d in zip(trained, direction, strict=True))
    if step.penalty is not None and hasattr(step.penalty, "mean"):
        step.penalty.mean.zero_()

    def loss(h: float) -> float:
        with torch.no_grad():
            for p, d in zip(trained, direction, strict=True):
                p += h * d
        found = bound_loss(step, batches)
        with torch.no_grad():
            for p, d in zip(trained, direction, strict=True):
                p -= h * d
        return found

    h = 1e-6
    assert slope == pytest.approx((loss(h) - loss(-h)) / (2 * h), rel=2e-4)
    assert float(result.task_loss + result.penalty_loss) == pytest.approx(loss(0.0), rel=1e-9)


def bound_loss(step, batches) -> float:
    mean = getattr(step.penalty, "mean", None)
    for parameter in step.module.parameters():
        parameter.grad = None
    result = step(batches)
    if mean is not None:
        step.penalty.mean = mean
    return float(result.task_loss + result.penalty_loss)


def test_scale_trains_only_where_a_loss_depends_on_it():
    assert "vit.text_tower.clip.logit_scale" in {k.split("/")[-1] for k in pair_gradients("flyp", 1)}
    assert "vit.text_tower.clip.logit_scale" not in {k.split("/")[-1] for k in pair_gradients("vanilla_dive", 1)}


@pytest.mark.parametrize(("micro_batches", "seen"), [(1, [24, 12]), (2, [12, 12, 6, 6] * 2)])
def test_streams_go_through_the_network_one_after_the_other(micro_batches, seen):
    """So that the activations of one stream are gone before those of the other are made."""
    step, model, batches = bound_step("dive", micro_batches)
    sizes = []
    model.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    step(batches)
    assert sizes == seen
