"""From a recipe to what the loop needs, in stages: data, network, pretrained features, regularizer, head, adapter, step."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from riftcli import dist
from riftcli.console import Console
from riftcli.data.batches import check_reference_batch, divide_batch, sample_seed
from riftcli.data.loader import Batch, KeptBatches
from riftcli.data.split import Split
from riftcli.data.splits import Splits
from riftcli.errors import UsageError
from riftcli.evaluation.encoder import Encoder
from riftcli.evaluation.feature_cache import weights_digest
from riftcli.evaluation.features import View
from riftcli.evaluation.scores import predictions
from riftcli.models.backbone import check_patches
from riftcli.models.sharding import is_sharded
from riftcli.protocols import ObjectiveFn, Predictions
from riftcli.recipe import Recipe
from riftcli.runs.provenance import environment
from riftcli.training.averaging import WeightAverage
from riftcli.training.compiling import compiles
from riftcli.training.data import RunData, list_data, read_pixels
from riftcli.training.describe import print_batch, print_data, print_imbalance, print_model
from riftcli.training.mixing import MixedObjective
from riftcli.training.network import Network, apply_adapter, build_network, shard_network, start_head, trained_module, use_bf16
from riftcli.training.optim import build_optimizer, lr_factor, warmup_steps
from riftcli.training.pretrained import Pretrained
from riftcli.training.projection import SelectiveProjection
from riftcli.training.regularization import Regularization, bind_regularizer
from riftcli.training.step import Step
from riftcli.training.streams import TrainBatches, count_batches, reference_batches, train_batches
from riftcli.training.texts import Texts, build_texts, class_draws
from riftcli.training.transfer import Start, note_start

DIAGNOSE_EVERY, DIAGNOSED = 50, 100  # steps from one to the next; how many there are at least in a shorter run


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
    projection: SelectiveProjection | None = None
    average: WeightAverage | None = None
    class_texts: Texts | None = None  # of an objective that reads a text of every class
    start: Start | None = None  # what the text tower said before training
    origin: str | None = None  # digest of the weights that training begins with, before head and adapter; on rank 0
    kept: KeptBatches = field(default_factory=KeptBatches)  # of what is evaluated at every epoch

    @property
    def console(self) -> Console:
        """For what is measured by the way."""
        return Console(quiet=True)

    @property
    def batches(self) -> TrainBatches:
        """What the run trains on."""
        assert self.data.batches is not None
        return self.data.batches

    @property
    def total_steps(self) -> int:
        """Of the whole run."""
        return self.batches.steps_per_epoch * self.recipe.train.epochs

    def diagnosed(self, step: int) -> bool:
        """Whether a logged step (from 1) looks at the spectrum of its batch, which takes longer than the loss."""
        every = self.recipe.train.diagnose_every_steps or max(1, min(DIAGNOSE_EVERY, self.total_steps // DIAGNOSED))
        return step == 1 or step % every < self.recipe.train.log_every_steps or step == self.total_steps

    def rate(self, step: int) -> float:
        """Learning rate of a step (from 0) relative to the peak."""
        schedule, total = self.recipe.schedule, self.total_steps
        return lr_factor(step, total, warmup_steps(total, schedule.warmup, schedule.min_warmup_steps), schedule.name)

    def beside(self, step: int) -> Iterator[dict[str, Batch]]:
        """What a step sees beside the task's batch, from a step of the run on: stream -> this rank's share."""
        other = self.data.reference_batches
        batches: Iterator[Any] = itertools.repeat(None) if other is None else other.load(step)
        for number, batch in enumerate(batches, step):
            streams = {} if batch is None else {"reference": batch}
            if self.class_texts is not None:
                nothing, count = torch.empty(0), len(self.data.splits.train.classes)
                drawn = class_draws(self.class_texts, count, self.recipe.train.seed, number)
                streams["classes"] = (nothing, nothing, nothing, drawn)
            yield streams

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """With the weights that are validated and kept: their running average, where there is one."""
        if self.average is None:
            yield
            return
        with self.average.in_place():
            yield
        if self.network.head is not None:  # it was made of the averaged text tower
            self.network.head.refresh()

    def environment(self) -> dict[str, Any]:
        """Versions, device, precision, seed: the `env` of every report."""
        known = environment(self.device, self.precision, dist.world_size(), self.recipe.train.seed)
        own = self.recipe.eval.precision
        return known if own == "fp32" else {**known, "evaluation_precision": own}

    def predict(self, split: Split, pretrained: str | None = None, again: bool = False) -> Predictions:
        """A split through the network as it is now; `pretrained` names the pretrained features to compare with. again: it will be
        asked for once more, so that its images are better kept in memory.
        """
        dist.broadcast_tensors(list(self.network.vit.buffers()))  # batch norm statistics differ by rank; rank 0's are saved
        if self.network.head is not None:
            self.network.head.refresh()
        recipe = self.recipe
        kept = self.kept if again else None
        own = recipe.eval
        encoder = Encoder(self.device, own.batch_size, recipe.train.workers, None, self.console, kept, own.precision)
        table = encoder.table(self.network.classifier, self.network.preprocessing, split, recipe.input, split.name)
        return predictions(split, table, self.pretrained.splits.get(pretrained) if pretrained else None, recipe.eval.group)


def set_up(recipe: Recipe, device: torch.device, console: Console, resuming: bool = False, accept: bool = False) -> Setup:
    """Every stage draws from the random state in this order, which a resumed run repeats.

    accept: of a run that exists already, what would be refused for a new one (patients in two splits, pixels cut off) stays.
    """
    accept = accept or resuming
    torch.manual_seed(recipe.train.seed)
    micro, accumulation = divide_batch(recipe.train.batch_size, dist.world_size(), recipe.train.micro_batch_size)
    precision = "bf16" if use_bf16(recipe.train.precision, device) else "fp32"

    data = _checked_data(recipe, accumulation, accept, console)
    network = build_network(recipe, device, accumulation)
    origin = weights_digest(network.vit) if dist.is_main() else None
    if not accept:
        check_patches(recipe.model.name, recipe.model.image_size, network.vit)
    network, cached = shard_network(recipe, network, device), features_stand_in(recipe)
    data = read_pixels(data, recipe, network.preprocessing, console, again=not cached)
    targets, classes = torch.from_numpy(data.splits.train.targets), data.splits.train.classes

    encoder = Encoder.of_recipe(recipe, device, console)
    pretrained = _pretrained(recipe, data, network, encoder)
    start = note_start(recipe, data, network.vit, encoder)
    texts = build_texts(recipe, network.vit, data.splits.train, data.reference, console)
    regularization = bind_regularizer(
        recipe,
        network,
        pretrained,
        texts,
        device,
        precision == "bf16",
        lambda tower, own: encoder.texts(tower, own.lines, "texts with the pretrained model"),
        console,
    )
    if not regularization.pairs:
        texts.pop("reference", None)

    objective = recipe.objective.build(targets, len(classes))
    print_imbalance(recipe, classes, objective.class_weights, console)
    network = start_head(recipe, network, targets, classes, objective, pretrained, resuming, encoder.cache, console)
    pretrained.note_trace()
    apply_adapter(recipe, network, reads_texts=bool(texts), penalty=regularization.on_features)

    step = _step(recipe, network, objective, regularization, texts, cached, device, precision, micro, console)
    features, kept = pretrained.train_features if cached else None, data.kept
    own = train_batches(recipe, data.splits.train, network.preprocessing, features, texts.get("task"), kept.get("task"))
    beside = None
    if data.reference is not None and step.penalty is not None:  # a strength of 0 looks at nothing
        beside = reference_batches(recipe, data.reference, network.preprocessing, texts.get("reference"), kept.get("reference"))
    data = replace(data, batches=own, reference_batches=beside)
    attach = getattr(step.penalty, "attach", None)
    if attach is not None:  # it keeps an average of the weights that train
        attach(network.vit, own.steps_per_epoch * recipe.train.epochs)
    projection, average = _projection(recipe, network, console), WeightAverage.of(network.vit, recipe.train.ema)
    drawn = texts.get("classes")
    setup = Setup(recipe, device, precision, data, network, pretrained, step, projection, average, drawn, start, origin)
    print_model(recipe, network.vit, console)
    print_batch(recipe, micro, accumulation, setup.batches.steps_per_epoch, device, precision, console)
    torch.manual_seed(sample_seed(recipe.train.seed, dist.rank(), "loop"))  # drop path differs between ranks
    return setup


def features_stand_in(recipe: Recipe) -> bool:
    """True where features stand in for images: the backbone stays the pretrained one, and images are always the same."""
    same = recipe.augment.off and not recipe.augment.mixed
    return not recipe.adapter.trains_backbone and same and recipe.train.start_from is None


def _checked_data(recipe: Recipe, accumulation: int, accept: bool, console: Console) -> RunData:
    """The data, listed and fit for this recipe; nothing is decoded yet."""
    data = list_data(recipe, console, accept)
    _check_task(recipe, data.splits)
    count_batches(recipe, len(data.splits.train)).steps_per_epoch  # noqa: B018 - raises where not one batch is full
    if data.reference is not None:
        beside = reference_batches(recipe, data.reference)
        beside.steps_per_epoch  # noqa: B018 - the same
        check_reference_batch(beside.batch_size, dist.world_size(), accumulation)
    print_data(recipe, data, console)
    return data


def _check_task(recipe: Recipe, splits: Splits) -> None:
    if splits.train.task == "captions":
        raise UsageError(f"data.format {recipe.data.format}: images with captions have no classes to train on")
    if recipe.objective.task != splits.train.task:
        fitting = "bce" if splits.train.task == "multilabel" else "cross_entropy"
        raise UsageError(
            f"objective.name {recipe.component_name('objective')}: the data is {splits.train.task}; "
            f"use --set objective.name={fitting}"
        )


def _pretrained(recipe: Recipe, data: RunData, network: Network, encoder: Encoder) -> Pretrained:
    """The features that metrics compare with are computed now, those of the training split when they are asked for."""

    def encode(model: Any, split: Split, what: str, view: View | None = None) -> torch.Tensor:
        return encoder.table(model, network.preprocessing, split, recipe.input, what, view).features

    pretrained = Pretrained(data.splits.train, network.vit, encode, data.reference)
    if recipe.needs_pretrained:
        pretrained.encode_splits(data.evaluated(), recipe, encoder.device)
    return pretrained


def _projection(recipe: Recipe, network: Network, console: Console) -> SelectiveProjection | None:
    """After surgery: where the weights start is where they are pulled back to."""
    strength = recipe.optim.selective_projection
    if strength is None:
        return None
    if recipe.optim.weight_decay:
        console.warn("optim.weight_decay pulls the weights to zero, selective_projection to their start: set the decay to 0")
    return SelectiveProjection(network.vit, strength)


def _step(
    recipe: Recipe,
    network: Network,
    objective: ObjectiveFn,
    regularization: Regularization,
    texts: dict[str, Texts],
    cached: bool,
    device: torch.device,
    precision: str,
    micro: int,
    console: Console,
) -> Step:
    """The step with its optimizer."""
    penalty, on_weights = regularization.on_features, regularization.on_weights
    if on_weights is not None:
        on_weights.attach(network.vit)
        if recipe.optim.weight_decay:
            console.warn("optim.weight_decay pulls the weights to zero, the regularizer to their start: set the decay to 0")
    whole = micro * dist.world_size() == recipe.train.batch_size
    # a rule that measures gradients asks for those of features: compiled outputs, and DDP's first in a fixed order, hide them
    measured = recipe.strength is not None and recipe.strength.wants == "gradients"
    # texts are of many lengths: a graph for each; blocks that are shared out are gathered between graphs
    compiling = compiles(recipe.train.compile, device) and not texts and not is_sharded(network.vit) and not measured
    graphs = recipe.train.compile == "graphs"
    one_pass = whole and regularization.stream == "task" and not texts and not measured
    module = trained_module(network, cached, compiling, graphs, one_pass)
    optimizer = build_optimizer(
        network.vit,
        penalty.parameters() if penalty else [],
        extra_lr_scale=penalty.lr_scale if penalty else 1.0,
        no_weight_decay=recipe.adapter.no_weight_decay,
        fused=device.type in ("cuda", "cpu"),
        **recipe.optim.model_dump(exclude={"clip_grad", "selective_projection"}),
    )
    return Step(
        module=module,
        objective=MixedObjective.of(objective, recipe.augment, recipe.train.seed),
        optimizer=optimizer,
        penalty=penalty,
        weight_penalty=on_weights,
        prepare=(lambda features: features) if cached else network.preprocessing.normalise,
        pretrained=regularization.of_batch,
        device=device,
        bf16=precision == "bf16",
        micro_batch_size=micro,
        stream=regularization.stream,
        by_layers=bool(network.classifier.depths),
        tokens={name: own.tokens for name, own in texts.items()},
    )
