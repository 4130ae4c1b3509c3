"""C10: the sharpness of a data set (gradient of the whole split, one step up, loss again) against one training epoch on it.

python benchmarks/sharpness.py       vit_tiny_patch16_224 at 96 px, 128 images in batches of 16, one thread
"""

from __future__ import annotations

import timm
import torch
from paired import ratio

from riftcli.functional.sharpness import Ascent, measure
from riftcli.methods.objectives.cross_entropy import CrossEntropy
from riftcli.models.classifier import Classifier
from riftcli.training.optim import build_optimizer
from riftcli.training.step import Step

COUNT, BATCH, CLASSES = 128, 16, 10


def main() -> None:
    torch.manual_seed(0)
    images, targets = torch.randn(COUNT, 3, 96, 96), torch.arange(COUNT) % CLASSES
    objective = CrossEntropy().build(targets, CLASSES)

    def model() -> Classifier:
        torch.manual_seed(0)
        return Classifier(timm.create_model("vit_tiny_patch16_224", img_size=96, num_classes=CLASSES))

    measured, trained = model(), model().train()
    optimizer = build_optimizer(trained.vit, [], "adamw", 1e-4, 0.05)
    step = Step(trained, objective, lambda x: x, torch.device("cpu"), BATCH)

    def evaluate(with_gradient: bool) -> float:
        measured.zero_grad(set_to_none=True)
        total = 0.0
        with torch.set_grad_enabled(with_gradient):
            for x, y in zip(images.split(BATCH), targets.split(BATCH), strict=True):
                loss = objective.losses(measured(x).logits, y).sum() / COUNT
                if with_gradient:
                    loss.backward()
                total += float(loss.detach())
        return total

    def epoch() -> None:
        for x, y in zip(images.split(BATCH), targets.split(BATCH), strict=True):
            optimizer.zero_grad(set_to_none=True)
            step({"task": (x, y, torch.arange(BATCH))})
            torch.nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
            optimizer.step()

    before = {name: tensor.clone() for name, tensor in measured.state_dict().items()}
    ratio("C10 sharpness / training epoch", lambda: measure(measured, evaluate, Ascent()), epoch, 1.40, pairs=12)
    same = all(torch.equal(before[name], tensor) for name, tensor in measured.state_dict().items())
    print(f"C10 weights restored bitwise: {same}")


if __name__ == "__main__":
    main()
