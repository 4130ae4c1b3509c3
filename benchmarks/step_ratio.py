"""C1, C3, C4: the cost of a RIFT or RSC step against a FULL step, and of ours against the shortest hand-written loop.

python benchmarks/step_ratio.py      vit_tiny_patch16_224 at 96 px, batch 16, AdamW, one thread
"""

from __future__ import annotations

import timm
import torch
from paired import ratio
from timm.optim import create_optimizer_v2

from riftcli.methods.objectives.cross_entropy import CrossEntropy
from riftcli.methods.regularizers.rift import Rift
from riftcli.methods.regularizers.rift_penalty import RiftPenalty
from riftcli.methods.regularizers.rsc import Rsc
from riftcli.models.classifier import Classifier, frozen_copy
from riftcli.training.optim import build_optimizer, set_lr
from riftcli.training.step import Step

BATCH, CLASSES = 16, 10


def vit():
    torch.manual_seed(0)
    return timm.create_model("vit_tiny_patch16_224", img_size=96, num_classes=CLASSES)


def ours(kind: str, cached: bool = False):
    """One optimizer step of the loop: forward, losses, backward, clip, step."""
    model = vit()
    classifier = Classifier(model).train()
    images, targets = torch.randn(BATCH, 3, 96, 96), torch.arange(BATCH) % CLASSES
    penalty, reference = None, None
    with torch.no_grad():
        table = classifier(images).features.clone()
    if kind == "rift":
        penalty = RiftPenalty(Rift(), Rift().target(192, torch.cov(torch.randn(192, 400))))
    elif kind == "rsc":
        penalty = Rsc().penalty()
        teacher = Classifier(frozen_copy(model))

        def reference(index, x):
            if cached:
                return table[index]
            with torch.no_grad():
                return teacher(x).features

    objective = CrossEntropy().build(targets, CLASSES)
    step = Step(classifier, objective, lambda x: x, torch.device("cpu"), BATCH, penalty=penalty, pretrained=reference)
    optimizer = build_optimizer(model, penalty.parameters() if penalty else [], "adamw", 1e-4, 0.05)

    def once():
        set_lr(optimizer, 1.0)
        optimizer.zero_grad(set_to_none=True)
        step({"task": (images, targets, torch.arange(BATCH))})
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return once


def by_hand():
    model = vit().train()
    images, targets = torch.randn(BATCH, 3, 96, 96), torch.arange(BATCH) % CLASSES
    optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-4, weight_decay=0.05)
    loss = torch.nn.CrossEntropyLoss()

    def once():
        optimizer.zero_grad(set_to_none=True)
        loss(model(images), targets).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return once


if __name__ == "__main__":
    ratio("C1 RIFT step / FULL step", ours("rift"), ours("full"), 1.02)
    ratio("C3 RSC step / FULL step", ours("rsc"), ours("full"), 1.35)
    ratio("C3 RSC step with cached pretrained features / FULL step", ours("rsc", cached=True), ours("full"), 1.05)
    ratio("C4 our FULL step / the shortest loop by hand", ours("full"), by_hand(), 1.00)
