"""C5: a linear probe of ten epochs that encodes every image once, against one that encodes it in every epoch.

python benchmarks/linear_probe.py    vit_tiny_patch16_224 at 96 px, 256 images in memory, batch 32, one thread
"""

from __future__ import annotations

import timm
import torch
from paired import ratio
from timm.optim import create_optimizer_v2

from riftcli.data.batches import epoch_batches
from riftcli.data.loader import TensorTable, train_loader
from riftcli.data.transforms import Preprocessing
from riftcli.evaluation.features import encode
from riftcli.methods.objectives.cross_entropy import CrossEntropy
from riftcli.models.classifier import Classifier, HeadOnly
from riftcli.training.optim import build_optimizer, set_lr
from riftcli.training.step import Step

IMAGES, BATCH, EPOCHS, CLASSES = 256, 32, 10, 10


def vit():
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", img_size=96, num_classes=CLASSES)
    for name, parameter in model.named_parameters():
        parameter.requires_grad = name.startswith("head.")
    return model


def ours(images: torch.Tensor, targets: torch.Tensor):
    """What `adapter: linear` does without augmentation: features once, then only the head."""
    prepare, cpu = Preprocessing.of_model(vit(), 96, 1.0), torch.device("cpu")

    def once() -> torch.Tensor:
        model = vit()
        index = torch.arange(IMAGES)
        batches = zip(images.split(BATCH), targets.split(BATCH), index.split(BATCH), strict=True)
        data = TensorTable(encode(Classifier(model, frozen_backbone=True), batches, IMAGES, prepare, cpu).features, targets)
        head = HeadOnly(model.get_classifier())
        step = Step(head, CrossEntropy().build(targets, CLASSES), lambda x: x, cpu, BATCH)
        optimizer = build_optimizer(model, [], "adamw", 1e-3, 0.05)
        set_lr(optimizer, 1.0)
        order = ([(e, i) for i in batch] for e in range(EPOCHS) for batch in epoch_batches(IMAGES, BATCH, 0, e, 0, 1))
        for features, wanted, place in train_loader(data, order, 0):
            optimizer.zero_grad(set_to_none=True)
            step({"task": (features, wanted, place)})
            optimizer.step()
        return model.get_classifier().weight.detach()

    return once


def naive(images: torch.Tensor, targets: torch.Tensor):
    """The loop that one writes first: the frozen network runs on every image in every epoch."""
    prepare = Preprocessing.of_model(vit(), 96, 1.0)

    def once() -> torch.Tensor:
        model = vit().eval()
        optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-3, weight_decay=0.05)
        loss = torch.nn.CrossEntropyLoss()
        for epoch in range(EPOCHS):
            for batch in epoch_batches(IMAGES, BATCH, 0, epoch, 0, 1):
                with torch.no_grad():
                    features = model.forward_head(model.forward_features(prepare.normalise(images[batch])), pre_logits=True)
                optimizer.zero_grad(set_to_none=True)
                loss(model.head(features), targets[batch]).backward()
                optimizer.step()
        return model.head.weight.detach()

    return once


if __name__ == "__main__":
    torch.manual_seed(1)
    pictures = torch.randint(0, 256, (IMAGES, 3, 96, 96), dtype=torch.uint8)
    labels = torch.arange(IMAGES) % CLASSES
    quick, slow = ours(pictures, labels), naive(pictures, labels)
    print(f"C5 largest difference of the two heads: {float((quick() - slow()).abs().max()):.1e}")
    ratio("C5 linear probe of 10 epochs / encoding in every epoch", quick, slow, 0.12, pairs=4)
