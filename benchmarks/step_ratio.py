"""C1, C3, C4: the cost of a regularized step against a FULL step, and of ours against the shortest hand-written loop.

python benchmarks/step_ratio.py            vit_tiny_patch16_224 at 96 px, batch 16, AdamW, one thread
python benchmarks/step_ratio.py family     the same for every member of the RIFT family and what stands beside it
python benchmarks/step_ratio.py real       methods with a second, frozen forward and without, ViT-S/14 at 70 px, batch 32
"""

from __future__ import annotations

import sys

import timm
import torch
from paired import ratio
from timm.optim import create_optimizer_v2

from riftcli import catalog
from riftcli.methods.objectives.cross_entropy import CrossEntropy
from riftcli.models.classifier import Classifier, Depths, frozen_copy
from riftcli.protocols import RegularizerContext
from riftcli.training.optim import build_optimizer, set_lr
from riftcli.training.step import Step

NAME, SIZE, BATCH, CLASSES, DIM = "vit_tiny_patch16_224", 96, 16, 10, 192
ALONE = {  # without pretrained features of the batch: target 1.02
    "RIFT plugin, Q learned": ("rift", {}),
    "RIFT plugin, Q fixed": ("rift", {"q": "fixed"}),
    "RIFT debiased, Q fixed": ("rift", {"q": "fixed", "estimator": "debiased"}),
    "RIFT running covariance": ("rift", {"estimator": "ema"}),
    "RIFT spectral": ("rift", {"q": "spectral"}),
    "RIFT, OFT blocks": ("rift", {"rotation": "oft"}),
    "RIFT, BOFT": ("rift", {"rotation": "boft"}),
    "RIFT, lambda-orthogonal": ("rift", {"rotation": "lambda_orthogonal"}),
}
PAIRED = {  # with cached pretrained features: target 1.05
    "RIFT paired, Q learned": ("rift", {"estimator": "paired"}),
    "RIFT procrustes": ("rift", {"q": "procrustes"}),
    "RIFT features, Q fixed": ("rift", {"compare": "features", "q": "fixed"}),
    "RSC": ("rsc", {}),
    "feature distillation": ("feature_distill", {}),
    "difference vector": ("difference_vector", {}),
    "LDIFS": ("ldifs", {}),
}


def vit():
    torch.manual_seed(0)
    return timm.create_model(NAME, img_size=SIZE, num_classes=CLASSES)


def ours(name: str = "none", fields: dict | None = None, cached: bool = False):
    """One optimizer step of the loop: forward, losses, backward, clip, step."""
    model = vit()
    config = catalog.component("regularizer", name)(**(fields or {}))
    depths = getattr(config, "layers", 0)
    classifier = Classifier(model, depths=depths).train()
    images, targets = torch.randn(BATCH, 3, SIZE, SIZE), torch.arange(BATCH) % CLASSES
    penalty = config.build(RegularizerContext(DIM, torch.device("cpu"), lambda: torch.randn(400, DIM)))
    copied = frozen_copy(model)
    teacher = Depths(copied, depths) if depths else Classifier(copied)
    with torch.no_grad():
        table = teacher(images).features.clone()

    def reference(index, x):
        if cached:
            return table[index]
        with torch.inference_mode():
            return teacher(x).features

    objective = CrossEntropy().build(targets, CLASSES)
    step = Step(
        classifier,
        objective,
        lambda x: x,
        torch.device("cpu"),
        BATCH,
        penalty=penalty,
        pretrained=reference,
        by_layers=bool(depths),
    )
    optimizer = build_optimizer(model, penalty.parameters() if penalty else [], "adamw", 1e-4, 0.05, fused=True)

    def once():
        set_lr(optimizer, 1.0)
        optimizer.zero_grad(set_to_none=True)
        step({"task": (images, targets, torch.arange(BATCH))})
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return once


def by_hand(**options):
    model = vit().train()
    images, targets = torch.randn(BATCH, 3, SIZE, SIZE), torch.arange(BATCH) % CLASSES
    optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-4, weight_decay=0.05, **options)
    loss = torch.nn.CrossEntropyLoss()

    def once():
        optimizer.zero_grad(set_to_none=True)
        loss(model(images), targets).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return once


if __name__ == "__main__":
    if sys.argv[1:] == ["family"]:
        for name, (kind, fields) in ALONE.items():
            ratio(f"C1 {name} / FULL step", ours(kind, fields), ours(), 1.02)
        for name, (kind, fields) in PAIRED.items():
            ratio(f"C3 {name}, cached / FULL step", ours(kind, fields, cached=True), ours(), 1.05)
    elif sys.argv[1:] == ["real"]:
        NAME, SIZE, BATCH, DIM = "vit_small_patch14_dinov2", 70, 32, 384
        for name, kind, fields in (
            ("RIFT features, Q fixed", "rift", {"compare": "features", "q": "fixed"}),
            ("RSC", "rsc", {}),
            ("RIFT paper", "rift", {}),
        ):
            ratio(f"{name} / FULL step", ours(kind, fields), ours(), 1.35, pairs=12)
    else:
        ratio("C1 RIFT step / FULL step", ours("rift"), ours(), 1.02)
        ratio("C3 RSC step / FULL step", ours("rsc"), ours(), 1.35)
        ratio("C3 RSC step with cached pretrained features / FULL step", ours("rsc", cached=True), ours(), 1.05)
        ratio("C4 our FULL step / the shortest loop by hand", ours(), by_hand(), 1.00)
        ratio("C4 the same / one by hand that asks for a fused optimizer", ours(), by_hand(fused=True), 1.00)
