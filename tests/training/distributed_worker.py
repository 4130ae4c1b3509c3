"""Run by torchrun (and, for one process, by plain python): the same global batch and the same split on any number of ranks.

python distributed_worker.py OUT.safetensors
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from riftcli import catalog, dist
from riftcli.data.batches import epoch_batches
from riftcli.data.datasets.digits import Digits
from riftcli.data.holdout import limit
from riftcli.data.images import FileReader
from riftcli.data.kept_images import KeepingReader, KeptImages, KeptPart
from riftcli.data.loader import ImageDataset, train_loader
from riftcli.data.split import Split
from riftcli.data.transforms import Preprocessing, TrainTransform
from riftcli.evaluation import features
from riftcli.evaluation import scores as evaluate
from riftcli.methods.objectives.cross_entropy import CrossEntropy
from riftcli.methods.regularizers.rift import Rift
from riftcli.methods.regularizers.rift_penalty import RiftPenalty
from riftcli.methods.regularizers.rsc import Rsc
from riftcli.models.backbone import Backbone
from riftcli.models.classifier import Classifier
from riftcli.models.head import reset_head
from riftcli.protocols import RegularizerContext, WeightPenalty
from riftcli.training.step import Step

sys.path.insert(0, str(Path(__file__).parent.parent))
from dataset_copies import picture  # noqa: E402
from family import FAMILY, OF_IMAGES  # noqa: E402
from family import bound as family_bound  # noqa: E402
from pairs import CASES, pair_gradients  # noqa: E402

ARGS = {"patch_size": 4, "embed_dim": 32, "depth": 3, "num_heads": 2}
BATCH = 12


def penalty(name: str):
    generator = torch.Generator().manual_seed(1)
    if name == "rift":
        bound = RiftPenalty(Rift(), Rift().target(32, torch.cov(torch.randn(32, 100, generator=generator))))
        bound.rotation.weight.data.copy_(0.1 * torch.randn(32, 32, generator=generator))
        return bound
    return Rsc().penalty() if name == "rsc" else None


def gradients(name: str, micro_batches: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    vit = Backbone("vit_tiny_patch16_224", pretrained=False, image_size=16, args=ARGS).build()
    reset_head(vit, 4, seed=0)
    model: nn.Module = Classifier(vit).train()
    wrapped = nn.parallel.DistributedDataParallel(model) if dist.world_size() > 1 else model
    generator = torch.Generator().manual_seed(2)
    images, targets = torch.randn(BATCH, 3, 16, 16, generator=generator), torch.arange(BATCH) ** 2 % 4
    reference = torch.randn(BATCH, 32, generator=generator)
    bound = penalty(name)
    share = BATCH // dist.world_size()
    own = slice(dist.rank() * share, (dist.rank() + 1) * share)
    step = Step(
        module=wrapped,
        objective=CrossEntropy(class_weights=[1.0, 2.0, 0.5, 3.0]).build(targets, 4),
        penalty=bound,
        prepare=lambda x: x,
        pretrained=lambda index, x: reference[index],
        device=torch.device("cpu"),
        bf16=False,
        micro_batch_size=share // micro_batches,
    )
    result = step({"task": (images[own], targets[own], torch.arange(BATCH)[own])})
    found = {f"{name}/{micro_batches}/{n}": p.grad for n, p in model.named_parameters()}
    if bound is not None and bound.parameters():
        found[f"{name}/{micro_batches}/Q"] = bound.parameters()[0].grad
    found[f"{name}/{micro_batches}/penalty_loss"] = result.penalty_loss
    found[f"{name}/{micro_batches}/task_loss"] = dist.sum_over_ranks(result.task_loss) / dist.world_size()
    return {key: value.detach().clone() for key, value in found.items()}


def family(name: str, micro_batches: int) -> dict[str, torch.Tensor]:
    """Gradients, gradient norms and running means of a member of the RIFT family, and of the second stream."""
    torch.manual_seed(0)
    penalty_, needs = family_bound(name, 32)
    vit = Backbone("vit_tiny_patch16_224", pretrained=False, image_size=16, args=ARGS).build()
    reset_head(vit, 4, seed=0)
    model: nn.Module = Classifier(vit, depths=needs["layers"]).train()
    generator = torch.Generator().manual_seed(2)
    images, targets = torch.randn(BATCH, 3, 16, 16, generator=generator), torch.arange(BATCH) ** 2 % 4
    others = torch.randn(2 * BATCH, 3, 16, 16, generator=generator)
    table = torch.randn(2 * BATCH, 32 * max(1, needs["layers"]), generator=generator)
    share = BATCH // dist.world_size()
    own = slice(dist.rank() * share, (dist.rank() + 1) * share)
    beside = slice(2 * own.start, 2 * own.stop)
    step = Step(
        module=nn.parallel.DistributedDataParallel(model) if dist.world_size() > 1 else model,
        objective=CrossEntropy().build(targets, 4),
        penalty=penalty_,
        prepare=lambda x: x,
        pretrained=lambda index, x: table[index],
        device=torch.device("cpu"),
        micro_batch_size=share // micro_batches,
        stream=needs["stream"],
        by_layers=bool(needs["layers"]),
        measure_gradients=True,
    )
    task = (images[own], targets[own], torch.arange(BATCH)[own])
    result = step({"task": task, "reference": (others[beside], torch.zeros(2 * share), torch.arange(2 * BATCH)[beside])})
    step.observe(result)
    found = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    found |= {f"penalty/{i}": p.grad for i, p in enumerate(penalty_.parameters())}
    found |= {f"state/{n}": value for n, value in penalty_.state_dict().items()}
    found |= {"penalty_loss": result.penalty_loss, "norms": torch.tensor(result.gradient_norms)}
    return {f"family/{name}/{micro_batches}/{key}": value.detach().clone() for key, value in found.items()}


def product() -> dict[str, torch.Tensor]:
    """Gradients of every adapter with every regularizer, both as the catalog has them."""
    found = {}
    generator = torch.Generator().manual_seed(3)
    images, targets = torch.randn(BATCH, 3, 16, 16, generator=generator), torch.arange(BATCH) % 4
    reference = torch.randn(BATCH, 32, generator=generator)
    share = BATCH // dist.world_size()
    own = slice(dist.rank() * share, (dist.rank() + 1) * share)
    for adapter in catalog.names("adapter"):
        for regularizer in OF_IMAGES:
            torch.manual_seed(0)
            vit = Backbone("vit_tiny_patch16_224", pretrained=False, image_size=16, args=ARGS).build()
            reset_head(vit, 4, seed=0)
            options = {"dropout": 0.0} if adapter == "adaptformer" else {}  # each rank would drop others
            method = catalog.component("adapter", adapter)(**options)
            if not method.trains_backbone and regularizer != "none":
                continue
            context = RegularizerContext(32, torch.device("cpu"), lambda: reference)
            config = catalog.component("regularizer", regularizer)()
            depths = getattr(config, "layers", 0)
            bound = config.build(context)
            method.prepare(vit)
            for name, parameter in vit.named_parameters():
                if parameter.requires_grad and not parameter.any():  # zero factors hide their partners' gradients
                    parameter.data.normal_(0, 0.02, generator=torch.Generator().manual_seed(len(name)))
            if isinstance(bound, WeightPenalty):
                bound.attach(vit)
            model: nn.Module = Classifier(vit, frozen_backbone=not method.trains_backbone, depths=depths).train()
            wide = reference.repeat(1, 3) * torch.linspace(0.5, 1.5, 96) if depths else reference
            step = Step(
                module=nn.parallel.DistributedDataParallel(model) if dist.world_size() > 1 else model,
                objective=CrossEntropy().build(targets, 4),
                penalty=None if isinstance(bound, WeightPenalty) else bound,
                weight_penalty=bound if isinstance(bound, WeightPenalty) else None,
                prepare=lambda x: x,
                pretrained=lambda index, x, wide=wide: wide[index],
                by_layers=bool(depths),
                device=torch.device("cpu"),
                bf16=False,
                micro_batch_size=share,
            )
            result = step({"task": (images[own], targets[own], torch.arange(BATCH)[own])})
            place = f"product/{adapter}/{regularizer}"
            found |= {f"{place}/{n}": p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}
            found[f"{place}/penalty_loss"] = result.penalty_loss.clone()
    return found


def predictions() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    vit = Backbone("vit_tiny_patch16_224", pretrained=False, image_size=16, args=ARGS).build()
    reset_head(vit, 10, seed=0)
    split = limit(Digits().load("test"), 21, seed=0)
    table = features.encode_split(
        Classifier(vit), split, Preprocessing.of_model(vit, 16, 1.0), torch.device("cpu"), batch_size=2, workers=0
    )
    seen = evaluate.predictions(split, table, table.features * 2)
    metrics = {n: torch.tensor(s["value"], dtype=torch.float64) for n, s in evaluate.score(["acc", "f1", "cka"], seen).items()}
    return {"logits": table.logits, "features": table.features, **metrics}


def kept_images() -> torch.Tensor:
    """(ranks, ranks, 5, 4, 3): what every rank sees of the image that each of them keeps; only the first has memory for it."""
    kept = KeptImages.of_machine(dist.world_size(), 10**6 if dist.is_main() else 0, 0)
    kept.put(dist.rank(), np.full((5, 4, 3), 10 + dist.rank(), "uint8"))
    dist.barrier()
    seen = torch.stack([kept.get(i).permute(1, 2, 0) for i in range(dist.world_size())])
    ranks = dist.gather_objects(seen)
    dist.barrier()  # the first rank's files go with it
    return torch.stack(ranks)


def batches_of_files(folder: Path) -> torch.Tensor:
    """(ranks, 2): on every rank, whether three epochs of augmented images are the same to the bit where they are kept in memory,
    with a data worker a rank; and how many are kept.
    """
    paths = [folder / f"{i}.png" for i in range(24)]
    if dist.is_main():
        for i, path in enumerate(paths):
            picture(path, i)
    dist.barrier()
    kept = KeptImages.of_machine(len(paths), 10**6, 0)
    plain = Split("train", [path.name for path in paths], np.zeros(24, "int64"), ["a"], FileReader(paths), paths=paths)
    transform = TrainTransform(Preprocessing((3, 8, 8), "bicubic", (0.5,) * 3, (0.5,) * 3, 1.0, resize="tensor"), 0.5, 0.4)

    def images(split: Split, workers: int) -> torch.Tensor:
        orders = [epoch_batches(24, 6, 0, epoch, dist.rank(), dist.world_size()) for epoch in range(3)]
        items = [[(epoch, i) for i in batch] for epoch, order in enumerate(orders) for batch in order]
        return torch.cat([batch[0] for batch in train_loader(ImageDataset(split, transform, seed=1), items, workers)])

    same = torch.equal(images(plain, 0), images(replace(plain, read=KeepingReader(plain.read, KeptPart(kept))), 1))
    dist.barrier()
    return torch.tensor(dist.gather_objects((int(same), kept.kept()[0])))


def main(out: str) -> None:
    dist.init("cpu")
    torch.set_num_threads(1)
    found = predictions()
    found["kept_images"] = kept_images()
    found["batches_of_files"] = batches_of_files(Path(out).with_suffix(".images"))
    if dist.world_size() <= 2:  # three ranks are there for the uneven shares of an evaluation
        for name in ("none", "rift", "rsc"):
            for micro_batches in (1, 2):
                found |= gradients(name, micro_batches)
        for name in FAMILY:
            for micro_batches in (1, 2):
                found |= family(name, micro_batches)
        found |= product()
        for name in CASES:
            for micro_batches in (1, 2):
                found |= pair_gradients(name, micro_batches)
        if dist.world_size() > 1:  # what a plain all_gather in the graph would give: no sum over ranks in the backward
            real = dist._GatherRows.backward
            dist._GatherRows.backward = staticmethod(
                lambda ctx, grad: grad[dist.rank() * ctx.rows : (dist.rank() + 1) * ctx.rows]
            )
            found |= {f"mutant/{key}": value for key, value in gradients("rift", 1).items()}
            dist._GatherRows.backward = real
    if dist.is_main():
        save_file(found, out)
    dist.barrier()
    dist.close()


if __name__ == "__main__":
    main(sys.argv[1])
