"""Step time and memory of every adapter against full finetuning: one optimizer step of the loop, one thread.

python benchmarks/adapters.py      vit_small_patch16_224 at 224 px, batch 8, AdamW
Memory is what a step holds beside the frozen weights: activations that autograd saves, gradients, and AdamW's two moments.
"""

from __future__ import annotations

import timm
import torch
from paired import ratio

from riftcli import catalog
from riftcli.methods.objectives.cross_entropy import CrossEntropy
from riftcli.models.classifier import Classifier
from riftcli.training.optim import build_optimizer, set_lr
from riftcli.training.step import Step

BATCH, CLASSES, SIZE = 8, 10, 224
CASES = {
    "linear": {},
    "partial": {"blocks": 3},
    "bitfit": {},
    "norm_tune": {},
    "lora": {},
    "lora dora": {"dora": True},
    "adaptformer": {},
    "vpt": {},
    "ssf": {},
    "oft": {},
    "boft": {"factors": 2},
}


def one_step(name: str, fields: dict):
    """(a step, bytes that it holds, trainable parameters)."""
    torch.manual_seed(0)
    vit = timm.create_model("vit_small_patch16_224", num_classes=CLASSES)
    adapter = catalog.component("adapter", name.split()[0])(**fields)
    adapter.prepare(vit)
    classifier = Classifier(vit, frozen_backbone=not adapter.trains_backbone).train()
    images, targets = torch.randn(BATCH, 3, SIZE, SIZE), torch.arange(BATCH) % CLASSES
    step = Step(classifier, CrossEntropy().build(targets, CLASSES), lambda x: x, torch.device("cpu"), BATCH)
    optimizer = build_optimizer(vit, [], "adamw", 1e-4, 0.05, no_weight_decay=adapter.no_weight_decay)
    trained = [p for p in vit.parameters() if p.requires_grad]

    def once() -> None:
        set_lr(optimizer, 1.0)
        optimizer.zero_grad(set_to_none=True)
        step({"task": (images, targets, torch.arange(BATCH))})
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()

    weights = {p.data_ptr() for p in vit.parameters()}
    saved: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.data_ptr() not in weights:
            storage = tensor.untyped_storage()
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        once()
    parameters = sum(p.numel() for p in trained)
    return once, sum(saved.values()) + 3 * 4 * parameters, parameters


if __name__ == "__main__":
    torch.set_num_threads(1)
    full, full_bytes, full_count = one_step("full", {})
    print(f"full: {full_count:,} parameters, {full_bytes / 1e6:.0f} MB held")
    for name, fields in CASES.items():
        once, held, count = one_step(name, fields)
        ratio(f"{name} / full, step time", once, full, target=1.5, pairs=12)
        print(f"  {count:,} parameters; {held / 1e6:.0f} MB held, {held / full_bytes:.2f} of full")
