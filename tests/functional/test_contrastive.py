"""Contrastive terms against slow, obvious ones in fp64."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from riftcli.functional.contrastive import contrastive_loss, row_distillation
from riftcli.methods.regularizers.cosine import Cosine
from riftcli.methods.regularizers.dive import Dive
from riftcli.methods.regularizers.replay import Replay
from riftcli.methods.regularizers.snd import Snd
from riftcli.protocols import Pairs, RegularizerContext

N, E = 7, 5


def rows(seed: int) -> torch.Tensor:
    return F.normalize(torch.randn(N, E, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))


IMAGES, TEXTS, SCALE = rows(1), rows(2), torch.tensor(9.0, dtype=torch.float64)
TARGETS = torch.tensor([0, 1, 0, 2, 1, 0, 3])


def slow(same_class: str) -> float:
    """DiVE Eq. 1, one exponential at a time."""
    total = 0.0
    for a, b in ((IMAGES, TEXTS), (TEXTS, IMAGES)):
        for i in range(N):
            of_class = [k for k in range(N) if TARGETS[k] == TARGETS[i]]
            against = [k for k in range(N) if same_class != "ignore" or k == i or k not in of_class]
            below = sum(math.exp(float(SCALE * a[i] @ b[k])) for k in against)
            wanted = of_class if same_class == "positive" else [i]
            total -= sum(math.log(math.exp(float(SCALE * a[i] @ b[k])) / below) for k in wanted) / len(wanted) / (2 * N)
    return total


@pytest.mark.parametrize("same_class", ["negative", "ignore", "positive"])
def test_contrastive_loss(same_class):
    found = contrastive_loss(IMAGES, TEXTS, SCALE, TARGETS, same_class)
    assert float(found) == pytest.approx(slow(same_class), rel=1e-12)


def test_without_classes_every_other_pair_is_a_negative():
    assert float(contrastive_loss(IMAGES, TEXTS, SCALE)) == pytest.approx(slow("negative"), rel=1e-12)


@pytest.mark.parametrize("same_class", ["ignore", "positive"])
def test_gradients_of_masked_forms_are_finite(same_class):
    images = IMAGES.clone().requires_grad_()
    contrastive_loss(images, TEXTS, SCALE, TARGETS, same_class).backward()
    assert torch.isfinite(images.grad).all()


def test_row_distillation_is_the_divergence_of_the_teacher_from_the_student():
    student, teacher = 3 * IMAGES @ TEXTS.T, 5 * TEXTS @ IMAGES.T
    expected = 0.0
    for s, t in ((student, teacher), (student.T, teacher.T)):
        p, q = t.softmax(1), s.softmax(1)
        expected += float((p * (p / q).log()).sum()) / N / 2
    assert float(row_distillation(student, teacher)) == pytest.approx(expected, rel=1e-12)
    assert float(row_distillation(teacher, teacher)) == pytest.approx(0, abs=1e-12)


CONTEXT = RegularizerContext(E, torch.device("cpu"), lambda: torch.zeros(1, E))
NOW, BEFORE = Pairs(IMAGES, TEXTS, SCALE), Pairs(rows(3), rows(4), SCALE)


def test_dive_over_two_batches_is_the_papers_formula():
    """Eq. 4 to 9: the running mean starts at zero and includes the batch at hand."""
    penalty = Dive(strength=10.0, alpha=0.9).build(CONTEXT)
    penalty.mean = penalty.mean.double()
    mean = torch.zeros(E, dtype=torch.float64)
    for now, before in ((NOW, BEFORE), (BEFORE, Pairs(rows(5), rows(6), SCALE))):
        u = [now.images[j] - before.images[j] for j in range(N)]
        v = [now.texts[j] - before.texts[j] for j in range(N)]
        mean = 0.9 * mean + 0.1 / N * sum((u[j] + v[j]) / 2 for j in range(N))
        avl = sum((u[j] - mean).square().sum() + (v[j] - mean).square().sum() for j in range(N)) / N
        pvl = sum((u[j] - v[j]).square().sum() for j in range(N)) / N
        assert float(penalty.loss(now, before)) == pytest.approx(float(10 * (avl + pvl)), rel=1e-10)
        penalty.observe(now, before)
        torch.testing.assert_close(penalty.mean, mean)


def test_one_shift_for_all_costs_only_what_the_mean_has_not_caught_up():
    shift = torch.full((E,), 0.01, dtype=torch.float64)
    now = Pairs(BEFORE.images + shift, BEFORE.texts + shift, SCALE)
    penalty = Dive(strength=1.0, alpha=0.5).build(CONTEXT)
    penalty.mean = penalty.mean.double()
    costs = []
    for _ in range(30):
        costs.append(float(penalty.loss(now, BEFORE)))
        penalty.observe(now, BEFORE)
    assert costs[0] == pytest.approx(2 * float((0.5 * shift).square().sum())) and costs[-1] < 1e-15


def test_parts_of_dive_add_up():
    def cost(**fields) -> float:
        penalty = Dive(strength=1.0, **fields).build(CONTEXT)
        return float(penalty.loss(NOW, BEFORE))

    assert cost() == pytest.approx(cost(pairwise=False) + cost(average=False), rel=1e-6)


def test_cosine_has_numbers_in_place_of_vectors():
    penalty = Cosine(strength=2.0, alpha=0.9).build(CONTEXT)
    u = torch.stack([NOW.images[j] @ BEFORE.images[j] for j in range(N)])
    v = torch.stack([NOW.texts[j] @ BEFORE.texts[j] for j in range(N)])
    mean = 0.9 * 1.0 + 0.1 * ((u + v) / 2).mean()
    expected = 2 * ((u - mean).square().mean() + (v - mean).square().mean() + (u - v).square().mean())
    assert float(penalty.loss(NOW, BEFORE)) == pytest.approx(float(expected), rel=1e-6)
    assert float(Cosine().build(CONTEXT).loss(BEFORE, BEFORE)) == pytest.approx(0, abs=1e-6)
    assert float(Cosine(start="zero").build(CONTEXT).loss(BEFORE, BEFORE)) > 1000  # pulled towards 0 at first


def test_replay_and_snd():
    assert float(Replay(strength=3.0).build(CONTEXT).loss(NOW, None)) == pytest.approx(3 * slow("negative"), rel=1e-9)
    expected = 0.5 * sum(float((IMAGES[j] - BEFORE.images[j]).square().sum()) for j in range(N)) / N
    assert float(Snd(strength=0.5).build(CONTEXT).loss(5 * IMAGES, BEFORE.images)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("config", [Dive, Cosine, Replay, Snd])
def test_strength_zero_is_nothing_at_all(config):
    assert config(strength=0.0).build(CONTEXT) is None
