"""One step of a two-tower model under every objective and regularizer that reads texts: in one process, and in several."""

from __future__ import annotations

import copy
import tempfile
from functools import cache
from pathlib import Path

import torch
from torch import nn
from vision_language import write_clip

from riftcli import catalog, dist
from riftcli.models.backbone import Backbone
from riftcli.models.classifier import Classifier
from riftcli.models.head import reset_head
from riftcli.models.image_text import train_towers
from riftcli.protocols import Pairs, RegularizerContext
from riftcli.training.pretrained import embedded
from riftcli.training.step import Step

# (objective, its fields, regularizer, its fields)
CASES = {
    "flyp": ("contrastive", {}, "none", {}),
    "flyp_ignore": ("contrastive", {"same_class": "ignore"}, "none", {}),
    "flyp_positive": ("contrastive", {"same_class": "positive"}, "none", {}),
    "replay": ("contrastive", {}, "replay", {}),
    "snd": ("contrastive", {}, "snd", {}),
    "dive": ("contrastive", {}, "dive", {"strength": 10.0}),
    "dive_mean_gradient": ("contrastive", {}, "dive", {"strength": 10.0, "alpha": 0.5, "mean_gradient": True}),
    "dive_on_task": ("contrastive", {}, "dive", {"strength": 10.0, "on": "task"}),
    "cosine": ("contrastive", {}, "cosine", {"strength": 10.0}),
    "tracer": ("contrastive", {}, "trajectory_distill", {"features": 20.0}),
    "tracer_reference": ("contrastive", {}, "trajectory_distill", {"features": 20.0, "on": "reference"}),
    "rift": ("contrastive", {}, "rift", {"compare": "features", "q": "fixed"}),
    "rsc_reference": ("contrastive", {}, "rsc", {"on": "reference"}),
    "prompts": ("prompt_cross_entropy", {"label_smoothing": 0.1}, "none", {}),
    "prompts_dive": ("prompt_cross_entropy", {}, "dive", {"strength": 10.0}),
    "vanilla_dive": ("cross_entropy", {}, "dive", {"strength": 10.0}),
}
BATCH, BESIDE, CLASSES = 12, 24, 4


@cache
def start() -> nn.Module:
    """A tiny two-tower model that every process builds alike."""
    with tempfile.TemporaryDirectory() as folder:
        vit = Backbone(f"open_clip:local-dir:{write_clip(Path(folder) / 'tiny-pairs')}").build()
    reset_head(vit, CLASSES, seed=0)
    return vit


def bound_step(name: str, micro_batches: int, double: bool = False) -> tuple[Step, Classifier, dict]:
    """(the step, its model, the batches of this rank)."""
    objective, options, regularizer, own_options = CASES[name]
    dtype = torch.float64 if double else torch.float32
    vit = copy.deepcopy(start()).to(dtype)
    config = catalog.component("regularizer", regularizer)(**own_options)
    task = catalog.component("objective", objective)(**options)
    generator = torch.Generator().manual_seed(2)
    images = torch.randn(BATCH + BESIDE, 3, 32, 32, generator=generator).to(dtype)
    targets = torch.arange(BATCH) ** 2 % CLASSES
    lines = vit.text_tower.format.tokenize([f"text {i} of {i * 7 % 5}" for i in range(BATCH + BESIDE + CLASSES)])
    places = {"task": slice(0, BATCH), "reference": slice(BATCH, BATCH + BESIDE), "classes": slice(BATCH + BESIDE, None)}
    with torch.no_grad():  # a model that has moved: difference vectors are not zero
        old = copy.deepcopy(vit)
        for parameter in vit.parameters():
            if parameter.dim():
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator).to(dtype)
    old_model = Classifier(old).eval()
    table = embedded(old_model, images, lines[: len(images)], False)
    context = RegularizerContext(vit.num_features, torch.device("cpu"), lambda: table.images[:BATCH].float())
    penalty = config.build(context)
    if hasattr(penalty, "mean"):
        penalty.mean = penalty.mean.to(dtype)
    texts = {getattr(task, "texts", None): True}
    reads = bool(getattr(task, "texts", None) or getattr(config, "texts", None))
    train_towers(vit, "both", reads, any(getattr(part, "trains_scale", False) for part in (task, config)))
    vit.get_classifier().requires_grad_(not getattr(task, "texts", None))
    if hasattr(penalty, "attach"):
        penalty.attach(vit, 10)
        with torch.no_grad():
            for parameter in penalty.teacher.parameters():
                parameter += 0.01 * torch.randn(parameter.shape, generator=generator).to(dtype) * (parameter.dim() > 0)
    stream = getattr(config, "on", "task")
    tokens = {}
    if "sample" in texts:
        tokens["task"] = lambda numbers: lines[numbers]
    if "class" in texts:
        tokens["classes"] = lambda numbers: lines[places["classes"]][numbers]
    if getattr(penalty, "pairs", False) and stream == "reference":
        tokens["reference"] = lambda numbers: lines[places["reference"]][numbers]

    def pretrained(index, images_now, tokens_now=None):
        if hasattr(penalty, "teacher"):
            return embedded(Classifier(penalty.teacher).eval(), images_now, tokens_now, False)
        index = index if index.dim() == 1 else index[:, 0]
        index = index + places[stream].start
        return table.images[index] if tokens_now is None else Pairs(table.images[index], table.texts[index], table.scale)

    ranks, rank = dist.world_size(), dist.rank()
    model = Classifier(vit).train()
    batches = {}
    for which, count in (("task", BATCH), ("reference", BESIDE)):
        own = slice(rank * count // ranks, (rank + 1) * count // ranks)
        rows = torch.arange(count)[own]
        labels = targets[own] if which == "task" else torch.zeros(len(rows))
        batches[which] = (images[places[which]][own], labels, rows, rows)
    batches["classes"] = (None, None, None, torch.arange(CLASSES))
    step = Step(
        module=nn.parallel.DistributedDataParallel(model) if ranks > 1 else model,
        objective=task.build(targets, CLASSES),
        prepare=lambda x: x,
        device=torch.device("cpu"),
        micro_batch_size=BATCH // ranks // micro_batches,
        penalty=penalty,
        pretrained=pretrained,
        stream=stream,
        tokens=tokens,
    )
    return step, model, batches


def pair_gradients(name: str, micro_batches: int, double: bool = False) -> dict[str, torch.Tensor]:
    """Gradients of both towers and the scale, the two losses, and the running mean."""
    step, model, batches = bound_step(name, micro_batches, double)
    result = step(batches)
    found = {n: p.grad for n, p in model.named_parameters() if p.requires_grad and p.grad is not None}
    assert not [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    if step.penalty is not None:
        found |= {f"state/{n}": value for n, value in step.penalty.state_dict().items() if n == "mean"}
    found["penalty_loss"] = result.penalty_loss
    found["task_loss"] = dist.sum_over_ranks(result.task_loss) / dist.world_size()
    return {f"pairs/{name}/{micro_batches}/{key}": value.detach().clone() for key, value in found.items()}
