"""One step: accumulation in two passes gives the gradients of the big batch, drop path included."""

from __future__ import annotations

import copy

import pytest
import torch
from family import FAMILY, bound
from torch.utils._python_dispatch import TorchDispatchMode

from riftcli.errors import DataError
from riftcli.methods.objectives.bce import BinaryCrossEntropy
from riftcli.methods.objectives.cross_entropy import CrossEntropy
from riftcli.methods.regularizers.rift import Rift
from riftcli.methods.regularizers.rift_penalty import RiftPenalty
from riftcli.methods.regularizers.rsc import Rsc
from riftcli.models.backbone import Backbone
from riftcli.models.classifier import Classifier
from riftcli.models.head import reset_head
from riftcli.training.step import Step

ARGS = {"patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2}


def build(drop_path: float) -> Classifier:
    torch.manual_seed(0)
    vit = Backbone("vit_tiny_patch16_224", pretrained=False, image_size=16, args=ARGS, drop_path=drop_path).build()
    reset_head(vit, 4, seed=0)
    return Classifier(vit).train()


def penalty(name: str):
    generator = torch.Generator().manual_seed(1)
    if name == "rift":
        bound = RiftPenalty(Rift(), Rift().target(32, torch.cov(torch.randn(32, 100, generator=generator))))
        bound.rotation.weight.data.copy_(0.1 * torch.randn(32, 32, generator=generator))
        return bound
    return Rsc(estimator="debiased").penalty() if name == "rsc" else None


def gradients(model: Classifier, name: str, micro: int, class_weights="none", bf16: bool = False):
    generator = torch.Generator().manual_seed(2)
    images, targets = torch.randn(12, 3, 16, 16, generator=generator), torch.arange(12) % 4
    reference = torch.randn(12, 32, generator=generator)
    objective = CrossEntropy(class_weights=class_weights, label_smoothing=0.1).build(targets, 4)
    bound = penalty(name)
    step = Step(
        module=model,
        objective=objective,
        penalty=bound,
        prepare=lambda x: x,
        pretrained=lambda index, x: reference[index],
        device=torch.device("cpu"),
        bf16=bf16,
        micro_batch_size=micro,
    )
    model.zero_grad()
    torch.manual_seed(5)
    result = step({"task": (images, targets, torch.arange(12))})
    grads = {n: p.grad.clone() for n, p in model.named_parameters()}
    if bound is not None and bound.parameters():
        grads["q"] = bound.parameters()[0].grad.clone()
    return result, grads


@pytest.mark.parametrize("name", ["none", "rift", "rsc"])
@pytest.mark.parametrize("micro", [2, 4, 6])
def test_accumulated_equals_the_big_batch(name, micro):
    model = build(drop_path=0.0)
    weights = [1.0, 2.0, 0.5, 3.0]
    whole, expected = gradients(model, name, 12, weights)
    parts, got = gradients(model, name, micro, weights)
    torch.testing.assert_close(parts.task_loss, whole.task_loss)
    torch.testing.assert_close(parts.penalty_loss, whole.penalty_loss)
    torch.testing.assert_close(parts.features, whole.features)
    for key, grad in expected.items():
        torch.testing.assert_close(got[key], grad, rtol=1e-4, atol=1e-6, msg=lambda m, key=key: f"{key}: {m}")


def family_step(model: Classifier, name: str, micro: int, measure: bool = False):
    """One step of a member of the family: (result, gradients, what a running mean became)."""
    generator = torch.Generator().manual_seed(2)
    images, targets = torch.randn(12, 3, 16, 16, generator=generator), torch.arange(12) % 4
    others = torch.randn(24, 3, 16, 16, generator=generator)
    penalty, needs = bound(name, 32)
    model.depths = needs["layers"]
    table = torch.randn(24, 32 * max(1, needs["layers"]), generator=generator)
    step = Step(
        module=model,
        objective=CrossEntropy().build(targets, 4),
        penalty=penalty,
        prepare=lambda x: x,
        pretrained=lambda index, x: table[index],
        device=torch.device("cpu"),
        micro_batch_size=micro,
        stream=needs["stream"],
        by_layers=bool(needs["layers"]),
        measure_gradients=measure,
    )
    model.zero_grad()
    streams = {"task": (images, targets, torch.arange(12)), "reference": (others, torch.zeros(24), torch.arange(24))}
    result = step(streams)
    grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    grads |= {f"penalty/{i}": p.grad.clone() for i, p in enumerate(penalty.parameters())}
    return result, grads, penalty.state_dict()


@pytest.mark.parametrize("name", FAMILY)
@pytest.mark.parametrize("micro", [3, 6])
def test_every_member_accumulates_exactly(name, micro):
    model = build(drop_path=0.0)
    whole, expected, state = family_step(model, name, 12)
    parts, got, moved = family_step(model, name, micro)
    torch.testing.assert_close(parts.penalty_loss, whole.penalty_loss, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(parts.features, whole.features)
    assert len(parts.features) == (24 if "reference" in name else 12)
    for key, grad in expected.items():
        torch.testing.assert_close(got[key], grad, rtol=1e-3, atol=1e-5, msg=lambda m, key=key: f"{key}: {m}")
    for key, value in state.items():
        torch.testing.assert_close(moved[key], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["procrustes", "ema", "procrustes on reference"])
def test_gradient_norms_are_those_of_the_two_losses(name):
    """Against backward passes of each loss alone; the same in micro-batches; measuring changes no gradient."""
    model = build(drop_path=0.0)
    plain, grads, _ = family_step(model, name, 12)
    assert plain.gradient_norms is None
    whole, measured, _ = family_step(model, name, 12, measure=True)
    for key, grad in grads.items():
        torch.testing.assert_close(measured[key], grad)
    parts, _, _ = family_step(model, name, 3, measure=True)
    assert parts.gradient_norms == pytest.approx(whole.gradient_norms, rel=1e-3)
    generator = torch.Generator().manual_seed(2)
    images, targets = torch.randn(12, 3, 16, 16, generator=generator), torch.arange(12) % 4
    features = model(images).features.detach().requires_grad_()
    torch.nn.functional.cross_entropy(model.vit.get_classifier()(features), targets).backward()
    assert whole.gradient_norms[0] == pytest.approx(float(features.grad.norm()), rel=1e-4)
    penalty, _ = bound(name, 32)
    others = torch.randn(24, 3, 16, 16, generator=generator)
    table = torch.randn(24, 32, generator=generator)
    seen = model(others if "reference" in name else images).features.detach().requires_grad_()
    penalty.loss(seen, table[: len(seen)]).backward()
    assert whole.gradient_norms[1] == pytest.approx(float(seen.grad.norm()), rel=1e-4)


def test_both_passes_drop_the_same_paths():
    """With the random state not replayed, the second pass would pull on features that the first never saw."""
    model = build(drop_path=0.4)
    result, _ = gradients(model, "rift", 4)
    seen = []
    original = Classifier.forward
    try:
        Classifier.forward = lambda self, x: seen.append(original(self, x)) or seen[-1]
        gradients(model, "rift", 4)
    finally:
        Classifier.forward = original
    first, second = seen[:3], seen[3:]
    assert len(second) == 3
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a.features, b.features.detach())
    assert not torch.equal(first[0].features, original(model, torch.zeros(4, 3, 16, 16)).features)


def test_objectives_equal_torch():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(10, 3, generator=generator)
    targets = torch.tensor([0, 0, 0, 0, 0, 0, 1, 1, 1, 2])
    balanced = CrossEntropy(class_weights="balanced", label_smoothing=0.1).build(targets, 3)
    weight = torch.tensor([10 / 18, 10 / 9, 10 / 3])
    mean = balanced.losses(logits, targets).sum() / balanced.weights(targets).sum()
    expected = torch.nn.functional.cross_entropy(logits, targets, weight, label_smoothing=0.1)
    torch.testing.assert_close(mean, expected)

    labels = torch.randint(0, 2, (10, 3), generator=generator).to(torch.uint8)
    bce = BinaryCrossEntropy().build(labels, 3)
    mean = bce.losses(logits, labels).sum() / bce.weights(labels).sum()
    torch.testing.assert_close(mean, 3 * torch.nn.functional.binary_cross_entropy_with_logits(logits, labels.float()))
    averaged = BinaryCrossEntropy(reduction="mean").build(labels, 3)
    torch.testing.assert_close(3 * averaged.losses(logits, labels), bce.losses(logits, labels))
    positive = labels.float().sum(0)
    weighted = BinaryCrossEntropy(class_weights="balanced").build(labels, 3).losses(logits, labels)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(
        logits, labels.float(), pos_weight=(10 - positive) / positive, reduction="none"
    ).sum(1)
    torch.testing.assert_close(weighted, expected)


def test_bf16_runs_the_network_only_and_keeps_the_losses_in_fp32():
    model = build(drop_path=0.0)
    _, exact = gradients(model, "rift", 12)
    seen = []
    hook = model.vit.blocks[0].attn.qkv.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    result, rounded = gradients(model, "rift", 12, bf16=True)
    hook.remove()
    assert seen == [torch.bfloat16]
    assert result.penalty_loss.dtype == result.task_loss.dtype == result.features.dtype == torch.float32
    for key, grad in exact.items():
        assert rounded[key].dtype == torch.float32
        assert (rounded[key] - grad).norm() <= 0.1 * grad.norm() + 1e-3, key


def test_class_weights_must_be_one_per_class():
    message = (
        "objective.class_weights: 2 weights were given and the data has 3 classes; give one per class, in the order of the "
        "classes, or use 'balanced'"
    )
    for objective, targets in (
        (CrossEntropy(class_weights=[1.0, 2.0]), torch.tensor([0, 1, 2])),
        (BinaryCrossEntropy(class_weights=[1.0, 2.0]), torch.zeros(2, 3, dtype=torch.uint8)),
    ):
        with pytest.raises(DataError) as caught:
            objective.build(targets, 3)
        assert str(caught.value) == message


def test_a_gradient_reaches_every_weight():
    model = build(drop_path=0.0)
    _, grads = gradients(copy.deepcopy(model), "rift", 12)
    assert all(grad.abs().sum() > 0 for key, grad in grads.items() if "qkv.bias" not in key)


class Waits(TorchDispatchMode):
    """Notes every operation that a GPU would have to be waited for: its result decides what the host does next."""

    OF_THE_HOST = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "_linalg_check_errors", "is_nonzero", "equal")

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.__name__.partition(".")[0]
        masked = name.startswith("index") and any(
            isinstance(i, torch.Tensor) and i.dtype == torch.bool
            for group in args
            if isinstance(group, list | tuple)
            for i in group
        )
        if name in self.OF_THE_HOST or masked:
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


def test_the_host_s_waits_are_noticed():
    rows = torch.eye(3)
    with Waits() as waits:
        float(rows.sum()), rows[rows > 0], torch.linalg.solve(rows, rows), rows[torch.tensor([0, 1])], rows.sum()
    assert waits.seen == ["_local_scalar_dense", "index", "_linalg_check_errors"]


@pytest.fixture
def waits(monkeypatch) -> Waits:
    """Of every step that is taken."""
    mode, real = Waits(), Step.__call__

    def watched(step, *streams):
        with mode:
            return real(step, *streams)

    monkeypatch.setattr(Step, "__call__", watched)
    return mode


@pytest.mark.parametrize("micro", [12, 4])
@pytest.mark.parametrize("name", [name for name in FAMILY if name != "procrustes" and "procrustes on" not in name])
def test_a_step_waits_for_the_device_nowhere(name, micro, waits):
    """Loss and gradients of every member: what is waited for comes after it, once (check_health). Singular values, which
    procrustes needs, are waited for by torch itself, where no dispatch shows it.
    """
    family_step(build(drop_path=0.1), name, micro)
    assert waits.seen == []


@pytest.mark.parametrize("name", ["rift", "rsc", "none"])
def test_a_step_of_the_paper_s_methods_neither(name, waits):
    model = build(drop_path=0.1)
    gradients(model, name, 12, [1.0, 2.0, 0.5, 3.0])
    with waits:
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    assert waits.seen == []
