"""What a run needs, measured or counted before it starts: seconds of a step on made-up images, disk."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass

import torch

from riftcli import dist
from riftcli.data.loader import Batch
from riftcli.protocols import RegularizerContext, WeightPenalty
from riftcli.recipe import Recipe
from riftcli.training.network import apply_adapter, build_network, trained_module, use_bf16
from riftcli.training.optim import build_optimizer
from riftcli.training.step import Step

ON_A_CPU = 8  # images of a measured step there: it is linear in them, and a whole batch takes minutes


@dataclass(frozen=True)
class StepCost:
    """seconds_per_image: of training, a second forward for pretrained features included; weight_bytes: of the saved model;
    disk_bytes: of a run with all that it needs to resume.
    """

    seconds_per_image: float
    weight_bytes: float
    disk_bytes: float


def disk_bytes(weights: float, trained: float) -> float:
    """last/ holds two checkpoints of weights and two moments, and a third while it is written; model/ the weights."""
    return weights + 3 * (weights + 2 * trained)


def measure_step(recipe: Recipe, classes: int, device: str, repeats: int = 2) -> StepCost:
    """Train a few steps on random images with random weights: the time does not depend on them. Data loading is not included."""
    plain = dataclasses.replace(recipe, model=recipe.model.model_copy(update={"pretrained": False, "weights": None}))
    place = dist.pick_device(device)
    network = build_network(plain, place, 1)
    streams = _made_up(recipe, classes, network.preprocessing.input_size, place)
    targets = streams["task"][1]
    size = len(targets)
    network.vit.reset_classifier(classes)
    network.vit.to(place)
    start = torch.randn(64, network.vit.num_features, generator=torch.Generator().manual_seed(0))
    penalty = None
    if recipe.adapter.trains_backbone:
        penalty = recipe.regularizer.build(RegularizerContext(network.vit.num_features, place, lambda: start))
    apply_adapter(plain, network)
    on_weights = penalty if isinstance(penalty, WeightPenalty) else None
    if on_weights is not None:
        on_weights.attach(network.vit)
    on_features = None if isinstance(penalty, WeightPenalty) else penalty
    depths, stream = network.classifier.depths, getattr(recipe.regularizer, "on", "task")
    live = not recipe.augment.off and not recipe.augment.views
    with torch.inference_mode():
        first = network.classifier.eval()(network.preprocessing.normalise(streams[stream][0].to(place)))
    table = (first.layers if depths else first.features).float().clone()

    def pretrained(index: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        if not live:
            return table[: len(x)]
        with torch.inference_mode():
            output = network.classifier(network.preprocessing.normalise(x))
        return output.layers if depths else output.features

    step = Step(
        module=trained_module(network, cached=False),
        objective=recipe.objective.build(targets, classes),
        prepare=network.preprocessing.normalise,
        device=place,
        micro_batch_size=size,
        penalty=on_features,
        weight_penalty=on_weights,
        pretrained=pretrained,
        bf16=use_bf16(recipe.train.precision, place),
        by_layers=bool(depths),
        stream=stream,
    )
    optimizer = build_optimizer(network.vit, step.penalty_parameters(), "adamw", 1e-6, 0.0)
    network.classifier.train()
    seconds = _fastest(step, optimizer, streams, repeats)
    weights = sum(p.numel() * p.element_size() for p in network.vit.parameters())
    trained = sum(p.numel() * p.element_size() for group in optimizer.param_groups for p in group["params"])
    return StepCost(seconds / size, weights, disk_bytes(weights, trained))


def _made_up(recipe: Recipe, classes: int, pixels: tuple[int, ...], device: torch.device) -> dict[str, Batch]:
    """Random images of the sizes that one forward sees: stream -> batch."""
    most = recipe.train.micro_batch_size or recipe.train.batch_size
    size = most if device.type == "cuda" else min(ON_A_CPU, most)
    share = (recipe.reference.batch_size or recipe.train.batch_size) / recipe.train.batch_size if recipe.reference else 1.0
    many = recipe.objective.task == "multilabel"
    targets = torch.zeros(size, classes, dtype=torch.uint8) if many else torch.arange(size) % classes
    generator = torch.Generator().manual_seed(0)
    streams = {}
    for name, count, labels in (("task", size, targets), ("reference", max(2, round(size * share)), None)):
        images = torch.randint(0, 256, (count, *pixels), dtype=torch.uint8, generator=generator)
        streams[name] = images, torch.zeros(count) if labels is None else labels, torch.arange(count)
    return streams


def _fastest(step: Step, optimizer: torch.optim.Optimizer, streams: dict[str, Batch], repeats: int) -> float:
    """Seconds of the fastest of so many steps, after one that does not count."""
    times = []
    for _ in range(1 + repeats):
        began = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        step(streams)
        optimizer.step()
        if step.device.type == "cuda":
            torch.cuda.synchronize(step.device)
        times.append(time.perf_counter() - began)
    return min(times[1:])
