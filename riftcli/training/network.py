"""The network of a run: backbone, head and what trains of it."""

from __future__ import annotations

import copy
import inspect
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from riftcli import dist
from riftcli.console import Console
from riftcli.data.transforms import Preprocessing
from riftcli.errors import ModelError, UsageError
from riftcli.evaluation.feature_cache import FeatureCache
from riftcli.models.backbone import Backbone
from riftcli.models.classifier import Classifier, HeadOnly
from riftcli.models.head import fit_head, reset_head, zero_head
from riftcli.models.image_text import ZeroShotHead, text_tower, train_towers
from riftcli.models.loading import check_values
from riftcli.models.sharding import is_sharded, outline, own_state, shard_backbone, sharded_names, whole_copy
from riftcli.models.weights import model_folder, read_config, saved_state, saved_weights
from riftcli.protocols import ObjectiveFn
from riftcli.recipe import Recipe
from riftcli.training.compiling import compiled
from riftcli.training.pretrained import Pretrained
from riftcli.training.texts import task_texts


@dataclass(frozen=True)
class Network:
    """vit: the timm model, changed in place by head and adapter; classifier: the same with one forward for both outputs.

    head: where the classifier is made of texts for as long as the run goes. outline: of a backbone that is shared out, its layers
    as they were built, without weights.
    """

    vit: Any
    classifier: Classifier
    preprocessing: Preprocessing
    head: ZeroShotHead | None = None
    outline: Any | None = None

    def on_cpu(self, adapter: Any | None) -> Any:
        """A copy of the network on the CPU. Of one that is shared out it is collective, and None but on rank 0.

        adapter: whose layers the network has at present.
        """
        if self.outline is None:
            return copy.deepcopy(self.vit).cpu()
        like = copy.deepcopy(self.outline)
        reset_head(like, self.vit.num_classes, seed=0)
        if adapter is not None:
            with torch.random.fork_rng(devices=[]):
                adapter.prepare(like)
        return whole_copy(self.vit, like)


def build_network(recipe: Recipe, device: torch.device, accumulation: int) -> Network:
    """The backbone, still without a head; raise UsageError for batch normalisation where a step sees several batches."""
    vit: Any = Backbone(**recipe.model.model_dump()).build()
    if not is_sharding_wanted(recipe):
        vit.to(device)
    dist.broadcast_tensors(list(vit.state_dict().values()))  # from scratch, ranks must start from the same bits
    preprocessing = Preprocessing.of_model(vit, recipe.model.image_size, recipe.model.crop_pct, recipe.input.evaluation_resize)
    several = dist.world_size() > 1 or accumulation > 1
    if several and any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in vit.modules()):
        raise UsageError(
            f"model.name {recipe.model.name}: batch normalisation sees one rank's micro-batch at a time, so several would not "
            "give the gradients of one; use one process and leave out train.micro_batch_size"
        )
    trains = recipe.adapter.trains_backbone
    depths = getattr(recipe.regularizer, "layers", 0) if trains else 0
    return Network(vit, Classifier(vit, frozen_backbone=not trains, depths=depths), preprocessing)


def is_sharding_wanted(recipe: Recipe) -> bool:
    """Whether ranks hold parts of the backbone: one alone holds all of it."""
    return recipe.train.shard_frozen and dist.world_size() > 1


def shard_network(recipe: Recipe, network: Network, device: torch.device) -> Network:
    """The same network, its frozen backbone shared out over ranks where the recipe wants that. Collective."""
    if not is_sharding_wanted(recipe):
        return network
    known = outline(network.vit)
    shard_backbone(network.vit, device)
    return replace(network, outline=known)


def start_head(
    recipe: Recipe,
    network: Network,
    targets: torch.Tensor,
    classes: list[str],
    objective: ObjectiveFn,
    pretrained: Pretrained,
    resuming: bool,
    cache: FeatureCache | None,
    console: Console,
) -> Network:
    """A head for these classes with the start values that `train.head_init` asks for; a resumed run has its own.

    Of an objective that reads texts it is made of them, from here to the end: returns the network with that.
    """
    vit = network.vit
    device = next(vit.parameters()).device
    reset_head(vit, len(classes), recipe.train.seed)
    vit.to(device)
    start = recipe.train.start_from
    if start is not None and not resuming:  # of a resumed run, the checkpoint holds what has become of them
        pretrained.train_features()  # of the pretrained weights, before others take their place
        load_start(start, vit, classes)
        console.line(f"start: weights and head of {start}")
    if start is not None and not getattr(recipe.objective, "texts", None):
        return network
    if getattr(recipe.objective, "texts", None) or recipe.train.head_init == "zero_shot":  # whatever it starts as, it is replaced
        _check_text_tower(recipe, vit)
        head = ZeroShotHead(vit, task_texts(recipe, classes))
        head.refresh()
        console.line(f"head: zero-shot, the text tower's for {len(classes)} classes with {len(head.texts[0])} prompts each")
        return replace(network, head=head if getattr(recipe.objective, "texts", None) else None)
    if recipe.train.head_init == "zeros":
        zero_head(vit)
    elif recipe.train.head_init == "linear_probe" and not resuming:
        _fit_head(vit, pretrained.train_features(), targets, objective, recipe.resolved["objective"], cache, console)
    return network


def load_start(start: str, vit: Any, classes: list[str]) -> None:
    """Put the kept weights of a run into a network with a head for `classes`; raise UsageError or ModelError."""
    where, folder = f"train.start_from {start}", model_folder(start)
    if not folder.is_dir():
        raise UsageError(f"{where}: no such folder; name a finished run")
    config = read_config(folder)
    if saved_weights(folder) is None:
        raise UsageError(f"{where}: no weights were kept there; finish that run first")
    if config.get("rift", {}).get("adapter"):
        raise UsageError(f"{where}: its adapter is no part of the backbone's own layers, so another run cannot begin with it")
    names = config.get("label_names") or []
    if names != classes:
        raise UsageError(
            f"{where}: it has {len(names)} classes ({', '.join(names[:3])}, ...), and this data has {len(classes)} "
            f"({', '.join(classes[:3])}, ...); begin with its backbone alone: model.name local-dir:{folder}"
        )
    state = saved_state(folder)
    check_values(state, vit.state_dict(), str(folder))
    try:
        vit.load_state_dict(state)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()[1:] if line.strip()]
        raise ModelError(f"{where}: its weights do not fit this model: {lines[0][:200] if lines else error}") from error


WORTH_KEEPING = 10**8  # samples x dimensions x classes from which a fit takes seconds


def _fit_head(
    vit: Any,
    features: torch.Tensor,
    targets: torch.Tensor,
    objective: ObjectiveFn,
    settings: dict[str, Any],
    cache: FeatureCache | None,
    console: Console,
) -> None:
    """Fit the head on rank 0 and share it: L-BFGS is not run twice to two roundings. cache: where runs with the same features
    find it, as other seeds and strengths have; settings: of the objective.
    """
    if dist.is_main():
        head, path, known = vit.get_classifier(), None, None
        if cache is not None and features.numel() * head.out_features >= WORTH_KEEPING:
            path = cache.path_of_head(features, targets, head.out_features, settings, head.weight.device)
            known = cache.read_named(path, {"weight": tuple(head.weight.shape), "bias": (head.out_features,), "fit": (2,)})
        if known is None:
            fit = torch.tensor(fit_head(vit, features, targets, objective), dtype=torch.float64)
            if cache is not None and path is not None:
                cache.write_named(path, {"weight": head.weight.detach(), "bias": head.bias.detach(), "fit": fit})
        else:
            fit = known["fit"]
            head.load_state_dict({"weight": known["weight"], "bias": known["bias"]})
        loss, ridge = fit.tolist()
        before = ", fitted before" * (known is not None)
        console.line(
            f"head: linear probe on the features of {len(targets)} training images, loss {loss:.3f}, ridge {ridge:g}{before}"
        )
    dist.broadcast_tensors([p.data for p in vit.get_classifier().parameters()])


def _check_text_tower(recipe: Recipe, vit: Any) -> None:
    if text_tower(vit) is None:
        raise UsageError(
            f"train.head_init zero_shot: model.name {recipe.model.name} has no text tower to make a head of; use a model with "
            "two, e.g. open_clip:ViT-B-16/laion400m_e32, or head_init linear_probe"
        )


def apply_adapter(recipe: Recipe, network: Network, reads_texts: bool = False, penalty: Any = None) -> None:
    """Surgery and freezing; inserted weights are the same on every rank. reads_texts: whether a step looks at any."""
    vit = network.vit
    device = next(vit.parameters()).device
    recipe.adapter.prepare(vit)
    _freeze_towers(recipe, vit, reads_texts, penalty)
    vit.to(device)
    dist.broadcast_tensors(list(own_state(vit).values()))  # inserted factors start at random, and from the same bits
    if recipe.train.grad_checkpointing:
        vit.set_grad_checkpointing(True)
        if reads_texts:
            vit.text_tower.checkpoint()


def _freeze_towers(recipe: Recipe, vit: Any, reads_texts: bool, penalty: Any) -> None:
    """A text tower trains where something reads texts and the adapter does not say otherwise; a head made of texts never does."""
    towers: Any = getattr(recipe.adapter, "towers", "image") or "both"
    if text_tower(vit) is None:
        if towers != "both" and getattr(recipe.adapter, "towers", None) == "text":
            raise UsageError(f"adapter.towers text: model.name {recipe.model.name} has no text tower")
        return
    parts = [recipe.objective, *([] if penalty is None else [recipe.regularizer])]
    train_towers(vit, towers, reads_texts, any(getattr(part, "trains_scale", False) for part in parts))
    if getattr(recipe.objective, "texts", None):
        vit.get_classifier().requires_grad_(False)


def trained_module(
    network: Network, cached: bool, compiling: bool = False, graphs: bool = False, one_pass: bool = False
) -> nn.Module:
    """What a step calls: the classifier, or the head alone on precomputed features; wrapped where there are several ranks.

    one_pass: a step goes through it once, so that ranks exchange the same gradients in the same order every time.
    """
    module: nn.Module = HeadOnly(network.vit.get_classifier()) if cached else network.classifier
    if compiling and not cached:
        module = compiled(module, graphs)
    if dist.world_size() > 1:
        known = inspect.signature(nn.parallel.DistributedDataParallel.__init__).parameters
        name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"  # which older versions have
        options: dict[str, Any] = {name: False, "static_graph": one_pass and not is_sharded(network.vit)}
        if is_sharded(network.vit):
            wrapper: Any = nn.parallel.DistributedDataParallel
            wrapper._set_params_and_buffers_to_ignore_for_model(module, sharded_names(module))
        module = nn.parallel.DistributedDataParallel(module, gradient_as_bucket_view=True, **options)
    return module


def use_bf16(precision: str, device: torch.device) -> bool:
    """Whether the network runs in bf16 autocast; `auto`: on GPUs that have it."""
    if precision == "auto":
        return device.type == "cuda" and torch.cuda.is_bf16_supported()
    return precision == "bf16"
