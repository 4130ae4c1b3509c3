"""What must hold between the sections of a recipe; rules of one component live in its own `check`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from riftcli import catalog
from riftcli.errors import did_you_mean
from riftcli.recipe.model_args import check_model_args
from riftcli.recipe.optimizers import unknown_optimizer
from riftcli.recipe.overrides import Key
from riftcli.recipe.sections import COMPONENTS, EVAL_SETS

Broken = tuple[Key, str] | tuple[Key, str, list[str]]  # (key, what is wrong, and what would be allowed)


def broken_rules(parts: dict[str, Any], raw: dict[str, Any]) -> Iterator[Broken]:
    """Every rule that does not hold. parts: the checked sections, None for one with errors of its own; raw: the file's data."""
    for rules in (_model, _metrics, _training, _task, _optimizer, _views, _mixed, _components, _texts):
        yield from rules(parts)
    yield from _regularizer(parts, raw)
    yield from _reference(parts, raw)


def _model(parts: dict[str, Any]) -> Iterator[Broken]:
    if parts["model"]:
        try:
            check_model_args(parts["model"].args)
        except ValueError as error:
            yield ("model", "args"), str(error)


def _metrics(parts: dict[str, Any]) -> Iterator[Broken]:
    evaluation = parts["eval"]
    if not evaluation:
        return
    for i, metric in enumerate(evaluation.metrics):
        if metric not in catalog.CATALOG["metric"]:
            close = did_you_mean(metric, catalog.names("metric"))
            yield ("eval", "metrics", i), f"unknown metric '{metric}'{close}", catalog.names("metric")
    if evaluation.best not in evaluation.metrics:
        yield ("eval", "best"), f"'{evaluation.best}' must be one of eval.metrics", evaluation.metrics
    used = [*evaluation.metrics, *(one.metric for key in EVAL_SETS for one in parts[key])]
    if "worst_group" in used and evaluation.group is None:
        yield ("eval", "group"), "worst_group needs it: name a column of the data, e.g. region"
    for key in ("patience", "trajectory"):
        if getattr(evaluation, key) and parts["data"] and parts["data"].val is None:
            yield ("eval", key), "needs a validation split: set data.val"


def _training(parts: dict[str, Any]) -> Iterator[Broken]:
    train, reading = parts["train"], parts["input"]
    for i, name in enumerate(train.track if train else []):
        if name not in catalog.CATALOG["tracker"]:
            close = did_you_mean(name, catalog.names("tracker"))
            yield ("train", "track", i), f"unknown tracker '{name}'{close}", catalog.names("tracker")
    if train and train.micro_batch_size and train.batch_size % train.micro_batch_size:
        yield (
            ("train", "micro_batch_size"),
            f"{train.micro_batch_size} does not divide train.batch_size {train.batch_size}",
        )
    if train and train.shard_frozen:
        key = ("train", "shard_frozen")
        if parts["adapter"] and not getattr(parts["adapter"], "leaves_base", False):
            yield key, "only adapter.name lora (without dora) leaves the backbone's weights alone, so that they can be shared out"
        if parts["model"] and not parts["model"].pretrained:
            yield key, "is for pretrained weights, and model.pretrained is false"
        if train.start_from:
            yield key, "cannot be used with train.start_from; begin with its backbone alone: model.name local-dir:FOLDER"
        if train.compile in (True, "graphs"):
            yield ("train", "compile"), "cannot be used with train.shard_frozen; leave it at auto"
    if train and train.compile == "graphs":
        several = "train.micro_batch_size" if train.micro_batch_size else "regularizer.on reference"
        if train.micro_batch_size or getattr(parts["regularizer"], "on", "task") == "reference":
            yield ("train", "compile"), f"graphs are for steps of one pass, and {several} makes several; use true"
    if reading and reading.cache_short_side and not reading.cache:
        yield ("input", "cache_short_side"), "has no effect without input.cache, the folder to keep images in"


def _task(parts: dict[str, Any]) -> Iterator[Broken]:
    """The objective must be for labels such as the data has, where the data source knows that without looking."""
    data, objective = parts["data"], parts["objective"]
    task = getattr(getattr(data, "source", None), "known_task", None)
    if task in ("multiclass", "multilabel") and objective is not None and objective.task != task:
        fitting = "bce" if task == "multilabel" else "cross_entropy"
        how = {"multilabel": "several labels an image", "multiclass": "one label per image"}
        yield ("objective", "name"), f"is for {how[objective.task]}, and the data has {how[task]}; use objective.name {fitting}"


def _optimizer(parts: dict[str, Any]) -> Iterator[Broken]:
    if not parts["optim"]:
        return
    others = unknown_optimizer(parts["optim"].name)
    if others is not None:
        yield ("optim", "name"), f"timm has no optimizer '{parts['optim'].name}'{did_you_mean(parts['optim'].name, others)}"


def _views(parts: dict[str, Any]) -> Iterator[Broken]:
    augment, train = parts["augment"], parts["train"]
    views = getattr(augment, "views", None)
    if views and augment.off:
        yield ("augment", "views"), "has no effect without augmentation: every epoch shows the same pixels"
    elif views and train and views > train.epochs:
        yield ("augment", "views"), f"{views} views, and train.epochs {train.epochs} shows no image more often than that"


def _mixed(parts: dict[str, Any]) -> Iterator[Broken]:
    """Mixed images go through the pretrained model too; what looks at whole images alone cannot have them."""
    augment, regularizer = parts["augment"], parts["regularizer"]
    if not augment or not augment.mixed:
        return
    key = ("augment", "mixup" if augment.mixup else "cutmix")
    if augment.views:
        yield key, "cannot be used with augment.views: a mixed image is never the same again"
    if getattr(parts["objective"], "texts", None) == "sample":
        yield key, "cannot be used with an objective of images and their texts: a mixed image has no text of its own"
    if getattr(regularizer, "on", "task") != "task":
        return
    if getattr(regularizer, "texts", None):
        what = "cannot be used with a regularizer of images and their texts on the task's batches; set regularizer.on: reference"
        yield key, what
    if getattr(regularizer, "of_whole_images", False):
        what = f"cannot be used with regularizer.estimator {regularizer.estimator}, which compares with the covariance of whole"
        yield key, f"{what} images; set regularizer.estimator: paired, or regularizer.on: reference"


def _components(parts: dict[str, Any]) -> Iterator[Broken]:
    for kind in [*COMPONENTS, "strength"]:
        check = getattr(parts[kind], "check", None)
        if check is not None:
            yield from check(parts)


def _texts(parts: dict[str, Any]) -> Iterator[Broken]:
    """What reads texts needs a model that does."""
    model, train = parts["model"], parts["train"]
    if not model:
        return
    two_towers = model.name.startswith("open_clip:")
    example = "e.g. model.name open_clip:ViT-B-16/laion400m_e32"
    for kind in ("objective", "regularizer"):
        if getattr(parts[kind], "texts", None) and not two_towers:
            yield (kind, "name"), f"reads texts, and {model.name} has no text tower; use a model with two, {example}"
    if not two_towers:
        if train and train.head_init == "zero_shot":
            yield ("train", "head_init"), f"zero_shot is made by a text tower, and {model.name} has none; {example}"
        for key in ("zero_shot", "captions"):
            if parts[key]:
                yield ("eval", key), f"needs a text tower, and {model.name} has none; {example}"
        if getattr(parts["adapter"], "towers", None) not in (None, "both", "image"):
            yield ("adapter", "towers"), f"{model.name} has an image tower alone"
    elif model.feature != "pooled" and any(getattr(parts[kind], "texts", None) for kind in ("objective", "regularizer")):
        yield ("model", "feature"), "texts are compared with the model's own embedding; use pooled"
    on_task = getattr(parts["regularizer"], "texts", None) and parts["regularizer"].on == "task"
    if on_task and getattr(parts["objective"], "texts", None) != "sample":
        yield ("regularizer", "on"), "'task' looks at the texts of the task's batch, which only objective.name contrastive reads"


def _regularizer(parts: dict[str, Any], raw: dict[str, Any]) -> Iterator[Broken]:
    given = raw.get("regularizer")
    name = str(given.get("name", COMPONENTS["regularizer"])) if isinstance(given, dict) else COMPONENTS["regularizer"]
    if parts["model"] and not parts["model"].pretrained and name != "none":
        yield (
            ("regularizer", "name"),
            f"'{name}' keeps a pretrained representation and model.pretrained is false (from scratch); use regularizer.name none",
        )


def _reference(parts: dict[str, Any], raw: dict[str, Any]) -> Iterator[Broken]:
    """The second set of images and the regularizer that looks at it need each other."""
    wanted = getattr(parts["regularizer"], "on", "task") == "reference"
    if wanted and raw.get("reference") is None:
        example = "e.g. {format: image_folder, root: ...}"
        yield ("regularizer", "on"), f"'reference' needs the images: name them below `reference:`, {example}"
    if parts["reference"] is not None and parts["regularizer"] is not None and not wanted:
        yield ("reference",), "has no effect: only a regularizer with `on: reference` looks at these images"
    size, train = getattr(parts["reference"], "batch_size", None), parts["train"]
    if size and train and train.micro_batch_size and size * train.micro_batch_size % train.batch_size:
        yield ("reference", "batch_size"), f"{size} does not divide into the steps of train.micro_batch_size"
