"""From a recipe to what the loop needs, in stages: data, network, pretrained features, regularizer, head, adapter, step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from riftcli import dist
from riftcli.console import Console
from riftcli.data.batches import balancing_weights, divide_batch, sample_seed
from riftcli.data.loader import ImageDataset, TensorTable
from riftcli.data.split import Split
from riftcli.data.splits import Splits
from riftcli.data.transforms import EvalTransform, TrainTransform
from riftcli.errors import UsageError
from riftcli.evaluation.encoder import Encoder
from riftcli.evaluation.scores import predictions
from riftcli.protocols import FeaturePenalty, ObjectiveFn, Predictions, RegularizerContext, WeightPenalty
from riftcli.recipe import Recipe
from riftcli.runs.provenance import environment
from riftcli.training.data import RunData, TrainBatches, list_data, read_pixels
from riftcli.training.describe import print_batch, print_data, print_imbalance, print_model
from riftcli.training.network import Network, apply_adapter, build_network, start_head, trained_module
from riftcli.training.optim import build_optimizer
from riftcli.training.pretrained import Pretrained, batch_features
from riftcli.training.step import Step


@dataclass(frozen=True)
class Setup:
    """Everything that is built before the first step."""

    recipe: Recipe
    device: torch.device
    precision: str
    data: RunData
    network: Network
    pretrained: Pretrained
    step: Step

    @property
    def batches(self) -> TrainBatches:
        """What the run trains on."""
        assert self.data.batches is not None
        return self.data.batches

    @property
    def total_steps(self) -> int:
        """Of the whole run."""
        return self.batches.steps_per_epoch * self.recipe.train.epochs

    def environment(self) -> dict[str, Any]:
        """Versions, device, precision, seed: the `env` of every report."""
        return environment(self.device, self.precision, dist.world_size(), self.recipe.train.seed)

    def predict(self, split: Split, pretrained: str | None = None) -> Predictions:
        """A split through the network as it is now; `pretrained` names the pretrained features to compare with."""
        dist.broadcast_tensors(list(self.network.vit.buffers()))  # batch norm statistics differ by rank; rank 0's are saved
        recipe = self.recipe
        encoder = Encoder(self.device, recipe.eval.batch_size, recipe.train.workers, None, Console(quiet=True))
        table = encoder.table(self.network.classifier, self.network.preprocessing, split, recipe.input, split.name)
        return predictions(split, table, self.pretrained.splits.get(pretrained) if pretrained else None)


def set_up(recipe: Recipe, device: torch.device, console: Console, resuming: bool = False) -> Setup:
    """Every stage draws from the random state in this order, which a resumed run repeats."""
    torch.manual_seed(recipe.train.seed)
    micro, accumulation = divide_batch(recipe.train.batch_size, dist.world_size(), recipe.train.micro_batch_size)
    precision = "bf16" if _use_bf16(recipe.train.precision, device) else "fp32"

    data = list_data(recipe, console)
    _check_task(recipe, data.splits)
    _batches(recipe, len(data.splits.train)).steps_per_epoch  # noqa: B018 - raises where not one batch is full
    print_data(recipe, data, console)

    network = build_network(recipe, device, accumulation)
    data = read_pixels(data, recipe, network.preprocessing, console)
    targets, classes = torch.from_numpy(data.splits.train.targets), data.splits.train.classes

    pretrained = _pretrained(recipe, data, network, device, console)
    penalty, of_batch = _regularizer(recipe, network, pretrained, device, console)

    objective = recipe.objective.build(targets, len(classes))
    print_imbalance(recipe, classes, objective.class_weights, console)
    start_head(recipe, network, targets, len(classes), objective, pretrained, resuming, console)
    pretrained.note_trace()
    apply_adapter(recipe, network)

    cached = not recipe.adapter.trains_backbone and recipe.augment.off
    step = _step(recipe, network, objective, penalty, of_batch, cached, device, precision, micro, console)
    data = replace(data, batches=_train_batches(recipe, data.splits.train, network, pretrained if cached else None))
    setup = Setup(recipe, device, precision, data, network, pretrained, step)
    print_model(recipe, network.vit, console)
    print_batch(recipe, micro, accumulation, setup.batches.steps_per_epoch, device, precision, console)
    torch.manual_seed(sample_seed(recipe.train.seed, dist.rank(), "loop"))  # drop path differs between ranks
    return setup


def _use_bf16(precision: str, device: torch.device) -> bool:
    if precision == "auto":
        return device.type == "cuda" and torch.cuda.is_bf16_supported()
    return precision == "bf16"


def _check_task(recipe: Recipe, splits: Splits) -> None:
    if splits.train.task == "captions":
        raise UsageError(f"data.format {recipe.data.format}: images with captions have no classes to train on")
    if recipe.objective.task != splits.train.task:
        fitting = "bce" if splits.train.task == "multilabel" else "cross_entropy"
        raise UsageError(
            f"objective.name {recipe.component_name('objective')}: the data is {splits.train.task}; "
            f"use --set objective.name={fitting}"
        )


def _pretrained(recipe: Recipe, data: RunData, network: Network, device: torch.device, console: Console) -> Pretrained:
    """The features that metrics compare with are computed now, those of the training split when they are asked for."""
    encoder = Encoder.of_recipe(recipe, device, console)

    def encode(model: Any, split: Split, what: str) -> torch.Tensor:
        return encoder.table(model, network.preprocessing, split, recipe.input, what).features

    pretrained = Pretrained(data.splits.train, network.vit, encode)
    if recipe.needs_pretrained:
        pretrained.encode_splits(data.evaluated(), recipe, device)
    return pretrained


def _regularizer(
    recipe: Recipe, network: Network, pretrained: Pretrained, device: torch.device, console: Console
) -> tuple[FeaturePenalty | WeightPenalty | None, Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None]:
    """(the bound regularizer, pretrained features of a batch where it needs them); before surgery, while the weights are."""
    if not recipe.adapter.trains_backbone:
        if recipe.component_name("regularizer") != "none":
            console.warn("the regularizer has no effect: this adapter freezes the backbone, so its features cannot move")
        return None, None
    vit = network.vit
    penalty = recipe.regularizer.build(RegularizerContext(vit.num_features, device, pretrained.train_features))
    if penalty is None or isinstance(penalty, WeightPenalty) or not penalty.needs_pretrained:
        return penalty, None
    return penalty, batch_features(recipe.augment.off, vit, network.preprocessing, device, pretrained.train_features)


def _step(
    recipe: Recipe,
    network: Network,
    objective: ObjectiveFn,
    penalty: FeaturePenalty | WeightPenalty | None,
    of_batch: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None,
    cached: bool,
    device: torch.device,
    precision: str,
    micro: int,
    console: Console,
) -> Step:
    """The step with its optimizer."""
    on_weights = penalty if isinstance(penalty, WeightPenalty) else None
    on_features = None if isinstance(penalty, WeightPenalty) else penalty
    if on_weights is not None:
        on_weights.attach(network.vit)
        if recipe.optim.weight_decay:
            console.warn("optim.weight_decay pulls the weights to zero, the regularizer to their start: set the decay to 0")
    module = trained_module(network, cached)
    optimizer = build_optimizer(
        network.vit,
        on_features.parameters() if on_features else [],
        extra_lr_scale=on_features.lr_scale if on_features else 1.0,
        no_weight_decay=recipe.adapter.no_weight_decay,
        **{k: v for k, v in recipe.optim.model_dump().items() if k != "clip_grad"},
    )
    return Step(
        module=module,
        objective=objective,
        optimizer=optimizer,
        penalty=on_features,
        weight_penalty=on_weights,
        prepare=(lambda features: features) if cached else network.preprocessing.normalise,
        pretrained=of_batch,
        device=device,
        bf16=precision == "bf16",
        micro_batch_size=micro,
    )


def _batches(recipe: Recipe, samples: int, dataset: Any = None, sampling: torch.Tensor | None = None) -> TrainBatches:
    train = recipe.train
    return TrainBatches(dataset, samples, train.batch_size, train.seed, train.workers, sampling)


def _train_batches(recipe: Recipe, train: Split, network: Network, cached: Pretrained | None) -> TrainBatches:
    """cached: the pretrained features stand in for the images, where nothing below the head moves."""
    targets = torch.from_numpy(train.targets)
    preprocessing, augment = network.preprocessing, recipe.augment
    sampling = balancing_weights(targets) if recipe.train.sampler == "balanced" else None

    def dataset(epoch: int) -> Any:
        if cached is not None:
            return TensorTable(cached.train_features(), targets)
        transform: Any = EvalTransform(preprocessing) if augment.off else TrainTransform(preprocessing, **augment.model_dump())
        return ImageDataset(train, transform, recipe.train.seed, epoch)

    return _batches(recipe, len(train), dataset, sampling)
