"""What a run needs, measured or counted before it starts: seconds of a step on made-up images, disk."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from typing import Any

import torch

from riftcli import dist
from riftcli.data.loader import TextBatch
from riftcli.data.transforms import Preprocessing
from riftcli.models.backbone import OPEN_CLIP, Backbone
from riftcli.models.classifier import Classifier
from riftcli.models.image_text import text_tower
from riftcli.protocols import Pairs, RegularizerContext, WeightPenalty
from riftcli.recipe import Recipe
from riftcli.training.network import Network, apply_adapter, build_network, trained_module, use_bf16
from riftcli.training.optim import build_optimizer
from riftcli.training.pretrained import embedded
from riftcli.training.rows import over_rows
from riftcli.training.step import OfBatch, Step, Tokens

ON_A_CPU = 8  # images of a measured step there: it is linear in them, and a whole batch takes minutes


@dataclass(frozen=True)
class StepCost:
    """seconds_per_image: of training, a second forward for pretrained features included; weight_bytes: of the saved model;
    disk_bytes: of a run with all that it needs to resume.
    """

    seconds_per_image: float
    weight_bytes: float
    disk_bytes: float


def disk_bytes(weights: float, trained: float, averaged: bool = False, sharded: bool = False) -> float:
    """last/ holds two checkpoints of weights, two moments and the weights' running average, and a third while it is written;
    model/ the weights. What is frozen and shared out is in no checkpoint.
    """
    return weights + 3 * ((trained if sharded else weights) + (2 + averaged) * trained)


PROCESS = 400e6  # bytes of Python, torch and its buffers, before there is a model


def process_memory(recipe: Recipe) -> float:
    """Bytes that one process of a run needs at least: weights, their gradients, two moments and the pretrained copy; activations
    and images come on top. Of a frozen backbone that is shared out it is the weights, as they are read. Counted on a model
    without storage.
    """
    plain = recipe.model.model_copy(update={"pretrained": False, "weights": None})
    if plain.name.startswith(OPEN_CLIP):  # which builds its models nowhere but in memory
        return PROCESS
    with torch.device("meta"):
        vit = Backbone(**plain.model_dump()).build()
    return PROCESS + (1 if recipe.train.shard_frozen else 5) * sum(p.numel() * p.element_size() for p in vit.parameters())


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
    reads_texts = recipe.reads_texts and text_tower(network.vit) is not None
    apply_adapter(plain, network, reads_texts, penalty)
    on_weights = penalty if isinstance(penalty, WeightPenalty) else None
    if on_weights is not None:
        on_weights.attach(network.vit)
    on_features = None if isinstance(penalty, WeightPenalty) else penalty
    depths, stream = network.classifier.depths, getattr(recipe.regularizer, "on", "task")
    live = (recipe.augment.mixed and stream == "task") or (not recipe.augment.off and not recipe.augment.views)
    tokens = _made_up_texts(recipe, network.vit, streams)
    teacher = _teacher(on_features, network)
    known = on_features is not None and teacher is network.classifier and not live
    lines = tokens[stream] if getattr(penalty, "pairs", False) else None
    pretrained = _pretrained_rows(teacher, network.preprocessing, streams[stream], lines, place, depths, known)
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
        tokens=tokens,
    )
    optimizer = build_optimizer(network.vit, step.penalty_parameters(), "adamw", 1e-6, 0.0)
    network.classifier.train()
    seconds = _fastest(step, optimizer, streams, repeats)
    weights = sum(p.numel() * p.element_size() for p in network.vit.parameters())
    trained = sum(p.numel() * p.element_size() for group in optimizer.param_groups for p in group["params"])
    disk = disk_bytes(weights, trained, recipe.train.ema is not None, recipe.train.shard_frozen)
    return StepCost(seconds / size, weights, disk)


def _teacher(penalty: Any, network: Network) -> Classifier:
    """The network that a penalty compares with: its own where it has one, else one of the size of the trained one."""
    attach = getattr(penalty, "attach", None)
    if attach is None:
        return network.classifier
    attach(network.vit, 100)
    return Classifier(penalty.teacher).eval()


def _pretrained_rows(
    teacher: Classifier,
    preprocessing: Preprocessing,
    batch: tuple[torch.Tensor, ...],
    tokens: Tokens | None,
    device: torch.device,
    depths: int,
    known: bool,
) -> OfBatch:
    """What a step is compared with: looked up where a run would (`known`), else by another forward."""

    def rows(x: torch.Tensor, lines: torch.Tensor | None) -> torch.Tensor | Pairs:
        images = preprocessing.normalise(x)
        if lines is not None:
            return embedded(teacher, images, lines, False)
        with torch.inference_mode():
            output = teacher(images)
        return (output.layers if depths else output.features).float()

    own = None if tokens is None else tokens(batch[3]).to(device)
    table = over_rows(torch.clone, rows(batch[0].to(device), own)) if known else None

    def pretrained(index: torch.Tensor, x: torch.Tensor, lines: torch.Tensor | None = None) -> torch.Tensor | Pairs:
        return rows(x, lines) if table is None else over_rows(lambda tensor: tensor[: len(x)], table)

    return pretrained


def _made_up(recipe: Recipe, classes: int, pixels: tuple[int, ...], device: torch.device) -> dict[str, TextBatch]:
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
        rows = torch.arange(count)
        streams[name] = images, torch.zeros(count) if labels is None else labels, rows, rows
    nothing = torch.empty(0)
    return {**streams, "classes": (nothing, nothing, nothing, torch.arange(classes))}


def _made_up_texts(recipe: Recipe, vit: Any, streams: dict[str, TextBatch]) -> dict[str, Tokens]:
    """stream -> texts of an ordinary length, for the streams whose texts are read."""
    tower = text_tower(vit)
    if tower is None or not recipe.reads_texts:
        return {}
    wanted, regularizer = getattr(recipe.objective, "texts", None), recipe.regularizer
    names = {"sample": ["task"], "class": ["classes"]}.get(str(wanted), [])
    if getattr(regularizer, "texts", None) and regularizer.on == "reference":
        names = [*names, "reference"]
    line = tower.format.tokenize(["a photo of a thing"])
    return {name: lambda numbers: line.expand(len(numbers), -1) for name in names}


def _fastest(step: Step, optimizer: torch.optim.Optimizer, streams: dict[str, TextBatch], repeats: int) -> float:
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
