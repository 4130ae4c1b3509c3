"""From a recipe to everything the loop needs: data, model, reference, head, adapter, regularizer, optimizer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from riftcli import dist
from riftcli.console import Console
from riftcli.data.batches import balancing_weights, divide_batch, epoch_batches, sample_seed, steps_per_epoch
from riftcli.data.classes import class_counts
from riftcli.data.loader import ImageDataset, TensorTable
from riftcli.data.split import Split
from riftcli.data.splits import Splits
from riftcli.data.transforms import EvalTransform, Preprocessing, TrainTransform
from riftcli.errors import UsageError
from riftcli.evaluation import features
from riftcli.evaluation import scores as evaluate
from riftcli.evaluation.encoder import Encoder
from riftcli.evaluation.features import Table
from riftcli.models.backbone import Backbone
from riftcli.models.classifier import Classifier, HeadOnly, frozen_copy
from riftcli.models.head import fit_head, reset_head, zero_head
from riftcli.protocols import Penalty, PenaltyContext, Predictions
from riftcli.recipe import Recipe
from riftcli.runs.provenance import environment
from riftcli.training import data
from riftcli.training.optim import build_optimizer
from riftcli.training.step import Step

MANY_CLASSES = 30  # above, only the rarest are printed


@dataclass
class Parts:
    """Everything that is built before the first step."""

    recipe: Recipe
    seed: int
    device: torch.device
    splits: Splits
    skipped: dict[str, list[str]]  # split -> ids of unreadable images that were left out
    preprocessing: Preprocessing
    vit: Any
    classifier: Classifier
    penalty: Penalty | None
    optimizer: torch.optim.Optimizer
    step: Step
    train_data: Callable[[int], Any]  # epoch -> torch Dataset
    sampling: torch.Tensor | None  # (N,) weights of the training samples, None to shuffle them
    trace_0: float | None  # variance of the training features before training, summed over dimensions, where it is known
    references: dict[str, torch.Tensor]  # pretrained features: "val", "test", "retention/0", "retention/0/bank"
    retention: list[tuple[Split, Split | None]]  # (query, bank or None for leave-one-out)
    steps_per_epoch: int
    total_steps: int
    precision: str

    def batches(self, epoch: int, first_step: int = 0) -> list[list[int]]:
        """Positions in the training split: this rank's part of every batch of an epoch."""
        train, ranks = self.splits.train, dist.world_size()
        return epoch_batches(
            len(train), self.recipe.train.batch_size, self.seed, epoch, dist.rank(), ranks, first_step, self.sampling
        )

    def environment(self) -> dict[str, Any]:
        """Versions, device, precision, seed: the `env` of every report."""
        return environment(self.device, self.precision, dist.world_size(), self.seed)

    def predict(self, split: Split, reference: str | None = None) -> Predictions:
        """A split through the network as it is now; `reference` names the pretrained features to compare with."""
        settings = self.recipe
        dist.broadcast_tensors(list(self.vit.buffers()))  # batch norm statistics differ between ranks; rank 0's are saved
        table = features.encode_split(
            self.classifier, split, self.preprocessing, self.device, settings.eval.batch_size, settings.train.workers
        )
        return evaluate.predictions(split, table, self.references.get(reference) if reference else None)


def set_up(recipe: Recipe, device: torch.device, console: Console, resuming: bool = False) -> Parts:
    """Data, model, reference, head, adapter, regularizer and optimizer, in that order."""
    seed = recipe.train.seed
    torch.manual_seed(seed)
    ranks = dist.world_size()
    micro, accumulation = divide_batch(recipe.train.batch_size, ranks, recipe.train.micro_batch_size)

    # data
    data = data.load_data(recipe, console)
    _check_task(recipe, data.splits)
    train, num_classes = data.splits.train, len(data.splits.train.classes)
    per_epoch = steps_per_epoch(len(train), recipe.train.batch_size)
    console.line(
        f"data: {recipe.data.name}, {len(train)} train, {len(data.splits.val) if data.splits.val else 0} validation, "
        f"{len(data.splits.test)} test, {num_classes} classes"
    )
    _print_classes(train, console)

    # model, still without a head
    backbone = Backbone(**recipe.model.model_dump())
    vit: Any = backbone.build().to(device)
    dist.broadcast_tensors(list(vit.state_dict().values()))  # from scratch, ranks must start from the same bits
    preprocessing = Preprocessing.of_model(vit, recipe.model.image_size, recipe.model.crop_pct)
    data = data.decoded(data, recipe, preprocessing, console)
    splits, train, retention = data.splits, data.splits.train, data.retention
    if any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in vit.modules()) and (ranks > 1 or accumulation > 1):
        raise UsageError(
            f"model.name {recipe.model.name}: batch normalisation sees one rank's micro-batch at a time, so several would not "
            "give the gradients of one; use one process and leave out train.micro_batch_size"
        )
    bare = Classifier(vit, frozen_backbone=True)

    encoder = Encoder.of_recipe(recipe, device, console)

    def encoded(model: nn.Module, split: Split, what: str) -> Table:
        return encoder.table(model, preprocessing, split, recipe.input, what)

    # the pretrained reference: its features on the evaluation splits, and a frozen copy if every batch needs one
    references: dict[str, torch.Tensor] = {}
    if recipe.needs_reference:
        pretrained = bare
        if not recipe.model.pretrained:
            pretrained = Classifier(Backbone(**{**recipe.model.model_dump(), "pretrained": True}).build().to(device))
        for name, split in _reference_splits(splits, retention).items():
            references[name] = encoded(pretrained, split, f"{name} with the pretrained model").features
        del pretrained

    start_features: dict[str, torch.Tensor] = {}

    def train_features() -> torch.Tensor:
        """(N, D) of the training split before any training: computed once, for whoever asks first."""
        if "train" not in start_features:
            start_features["train"] = encoded(bare, train, "train").features
        return start_features["train"]

    adapter = recipe.adapter
    penalty: Penalty | None = None
    if adapter.trains_backbone:
        penalty = recipe.regularizer.build(PenaltyContext(vit.num_features, device, train_features))
    elif recipe.component_name("regularizer") != "none":
        console.warn("the regularizer has no effect: this adapter freezes the backbone, so its features cannot move")
    reference_fn = None
    if penalty is not None and penalty.needs_reference:
        reference_fn = _batch_reference(recipe, vit, preprocessing, device, train_features)

    # head
    targets = torch.from_numpy(train.targets)
    objective = recipe.objective.build(targets, num_classes)
    _print_imbalance(recipe, train.classes, objective.class_weights, console)
    reset_head(vit, num_classes, seed)
    vit.to(device)
    if recipe.train.head_init == "zeros":
        zero_head(vit)
    elif recipe.train.head_init == "linear_probe" and not resuming:
        _probe_head(vit, train_features(), targets, objective, console)

    trace_0 = float(start_features["train"].var(0).sum()) if "train" in start_features else None

    # what trains
    adapter.prepare(vit)
    vit.to(device)
    dist.broadcast_tensors(list(vit.state_dict().values()))  # inserted factors start at random, and from the same bits
    if recipe.train.grad_checkpointing:
        vit.set_grad_checkpointing(True)
    if penalty is not None and penalty.on_weights:
        penalty.attach(vit)
        if recipe.optim.weight_decay:
            console.warn("optim.weight_decay pulls the weights to zero, the regularizer to their start: set the decay to 0")
    classifier = Classifier(vit, frozen_backbone=not adapter.trains_backbone)
    cached = not adapter.trains_backbone and recipe.augment.off
    trained: nn.Module = HeadOnly(vit.get_classifier()) if cached else classifier
    if ranks > 1:
        trained = nn.parallel.DistributedDataParallel(trained, broadcast_buffers=False)

    def train_data(epoch: int) -> Any:
        if cached:
            return TensorTable(train_features(), targets)
        return ImageDataset(train, _train_transform(recipe, preprocessing), seed, epoch)

    optimizer = build_optimizer(
        vit,
        penalty.parameters() if penalty else [],
        extra_lr_scale=penalty.lr_scale if penalty else 1.0,
        no_weight_decay=adapter.no_weight_decay,
        **{k: v for k, v in recipe.optim.model_dump().items() if k != "clip_grad"},
    )
    bf16 = _use_bf16(recipe.train.precision, device)
    trainable = sum(p.numel() for p in vit.parameters() if p.requires_grad)
    console.line(
        f"model: {recipe.model.name}, {sum(p.numel() for p in vit.parameters()):,} parameters, {trainable:,} trainable; "
        f"{recipe.component_name('adapter')} + {recipe.component_name('regularizer')}"
    )
    console.line(
        f"batch: {recipe.train.batch_size} = {ranks} rank{'s' * (ranks > 1)} x {micro} x {accumulation}; "
        f"{per_epoch} steps x {recipe.train.epochs} epochs on {device}, {'bf16' if bf16 else 'fp32'}"
    )
    torch.manual_seed(sample_seed(seed, dist.rank(), "loop"))  # drop path differs between ranks
    return Parts(
        recipe=recipe,
        seed=seed,
        device=device,
        splits=splits,
        skipped=data.skipped,
        preprocessing=preprocessing,
        vit=vit,
        classifier=classifier,
        penalty=penalty,
        optimizer=optimizer,
        step=Step(
            module=trained,
            objective=objective,
            penalty=penalty,
            prepare=(lambda features: features) if cached else preprocessing.normalise,
            reference=reference_fn,
            device=device,
            bf16=bf16,
            micro_batch_size=micro,
        ),
        train_data=train_data,
        sampling=balancing_weights(targets) if recipe.train.sampler == "balanced" else None,
        trace_0=trace_0,
        references=references,
        retention=retention,
        steps_per_epoch=per_epoch,
        total_steps=per_epoch * recipe.train.epochs,
        precision="bf16" if bf16 else "fp32",
    )


def _print_classes(train: Split, console: Console) -> None:
    counts = class_counts(train)
    few = len(counts) <= MANY_CLASSES
    shown = list(counts.items()) if few else sorted(counts.items(), key=lambda pair: pair[1])[:3]
    console.line(f"data: {'' if few else 'rarest '}classes in train: {', '.join(f'{name} {count}' for name, count in shown)}")
    for name in [name for name, count in counts.items() if count == 0][:5]:
        console.warn(f"class '{name}' has no training image")


def _print_imbalance(recipe: Recipe, classes: list[str], weights: torch.Tensor | None, console: Console) -> None:
    if weights is not None:
        pairs = sorted(zip(classes, weights.tolist(), strict=True), key=lambda pair: -pair[1])
        few = pairs if len(pairs) <= MANY_CLASSES else pairs[:3]
        console.line(f"class weights: {', '.join(f'{name} {weight:.3g}' for name, weight in few)}")
    if recipe.train.sampler == "balanced":
        goal = "every class is equally likely" if recipe.objective.task == "multiclass" else "rare classes come more often"
        console.line(f"sampler: balanced, drawn with replacement so that {goal}")


def _check_task(recipe: Recipe, splits: Splits) -> None:
    if splits.train.task == "captions":
        raise UsageError(f"data.format {recipe.data.format}: images with captions have no classes to train on")
    if recipe.objective.task != splits.train.task:
        fitting = "bce" if splits.train.task == "multilabel" else "cross_entropy"
        raise UsageError(
            f"objective.name {recipe.component_name('objective')}: the data is {splits.train.task}; "
            f"use --set objective.name={fitting}"
        )


def _reference_splits(splits: Splits, retention: list[tuple[Split, Split | None]]) -> dict[str, Split]:
    wanted = {"test": splits.test}
    if splits.val is not None:
        wanted["val"] = splits.val
    for i, (query, bank) in enumerate(retention):
        wanted[f"retention/{i}"] = query
        if bank is not None:
            wanted[f"retention/{i}/bank"] = bank
    return wanted


def _train_transform(recipe: Recipe, preprocessing: Preprocessing) -> Any:
    if recipe.augment.off:
        return EvalTransform(preprocessing)
    return TrainTransform(preprocessing, **recipe.augment.model_dump())


def _batch_reference(
    recipe: Recipe, vit: nn.Module, preprocessing: Preprocessing, device: torch.device, train_features: Any
) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Pretrained features of a batch: looked up when every epoch shows the same pixels, else a second, frozen forward."""
    if recipe.augment.off:
        table = train_features()
        return lambda index, images: table[index].to(device)
    teacher = Classifier(frozen_copy(vit))

    def forward(index: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            return teacher(preprocessing.normalise(images)).features

    return forward


def _probe_head(vit: Any, features: torch.Tensor, targets: torch.Tensor, objective: Any, console: Console) -> None:
    """Fit the head on rank 0 and share it: L-BFGS is not run twice to two roundings."""
    if dist.is_main():

        def mean_loss(logits: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
            return objective.losses(logits, wanted).sum() / objective.weights(wanted).sum()

        loss, ridge = fit_head(vit, features, targets, mean_loss)
        console.line(f"head: linear probe on the features of {len(targets)} training images, loss {loss:.3f}, ridge {ridge:g}")
    dist.broadcast_tensors([p.data for p in vit.get_classifier().parameters()])


def _use_bf16(precision: str, device: torch.device) -> bool:
    if precision == "auto":
        return device.type == "cuda" and torch.cuda.is_bf16_supported()
    return precision == "bf16"
