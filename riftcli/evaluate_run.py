"""Evaluate the saved weights of a run: what `rift eval` does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from riftcli import catalog, dist, evaluate, inputs
from riftcli import recipe as recipes
from riftcli import run as runs
from riftcli.console import Console, Stopwatch
from riftcli.errors import DataError, UsageError, nearest
from riftcli.model import Backbone, Classifier
from riftcli.protocols import Split
from riftcli.report.final import model_entry
from riftcli.saved_model import load_saved, read_config
from riftcli.splits import load_split, load_splits, with_classes
from riftcli.transforms import Preprocessing


def evaluate_run(run: Path, metrics: list[str], split_name: str, overrides: list[str], device: str = "auto") -> dict[str, Any]:
    """Score a run's kept weights on a split; writes RUN/eval/<dataset>-<split>/ and returns the report.

    `run` is a run folder or its model/ folder. Classes are matched by name with those the model was trained on.
    """
    clock = Stopwatch()
    torch_device = dist.init(device)
    console = Console(quiet=not dist.is_main())
    folder, recipe = _stored_recipe(run, overrides)
    names = metrics or recipe.eval.metrics
    for name in names:
        if name not in catalog.CATALOG["metric"]:
            known = catalog.names("metric")
            raise UsageError(f"--metrics {name}: unknown metric{nearest(name, known)}; one of: {', '.join(known)}")

    vit: Any = load_saved(folder, catalog.adapt)
    vit.to(torch_device)
    weights = (folder / "model" if (folder / "model").is_dir() else folder) / "model.safetensors"
    config = read_config(weights.parent)
    preprocessing = Preprocessing(**{k: _tuple(config["pretrained_cfg"][k]) for k in Preprocessing.__dataclass_fields__})
    split = _find_split(recipe, split_name)
    split = match_classes(split, config.get("label_names") or split.classes, recipe.data.rules.allow_missing_classes)
    split, skipped = inputs.sift(split, recipe.input, console)
    split = inputs.with_pixels(split, recipe.input, preprocessing, console)

    def encoded(model: torch.nn.Module, what: str) -> Any:
        with console.progress(f"encoding with the {what} model", len(split)) as bar:
            return evaluate.encode_split(
                model, split, preprocessing, torch_device, recipe.eval.batch_size, recipe.train.workers, bar.advance
            )

    table = encoded(Classifier(vit), "finetuned")
    reference = None
    wanted: list[Any] = [catalog.component("metric", name) for name in names]
    if any(metric.needs_reference for metric in wanted):
        if folder == weights.parent:
            raise UsageError(
                f"--run {run}: a model folder without its run does not say what it was finetuned from; leave out cka"
            )
        pretrained = Backbone(**{**recipe.model.model_dump(), "pretrained": True}).build().to(torch_device)
        reference = encoded(Classifier(pretrained), "pretrained").features
    seen = evaluate.predictions(split, table, reference)
    model = model_entry(recipe, vit, weights, config.get("rift", {}).get("epoch"), None)
    report = evaluate.report("eval", model, split, seen, names, recipe.data.name)
    report["data"] |= evaluate.exceptions(_overlap(recipe), {split.name: skipped} if skipped else {})
    report["timing"] = {
        "seconds": clock.seconds,
        "images_per_second": len(split) / clock.seconds,
        "peak_memory_bytes": evaluate.peak_memory_bytes(torch_device),
    }
    report["env"] = runs.environment(torch_device, "fp32", dist.world_size(), recipe.train.seed)
    target = folder / "eval" / f"{recipe.data.name}-{split.name}"
    if dist.is_main():
        evaluate.write_tables(target, split, seen)
        runs.write_json(target / "metrics.json", report)
    dist.barrier()
    return {**report, "written_to": str(target / "metrics.json")}


def _stored_recipe(run: Path, overrides: list[str]) -> tuple[Path, recipes.Recipe]:
    """(run folder, its recipe with other data); a bare model folder is its own run and needs its data by --set."""
    for override in overrides:
        key = override.partition("=")[0]
        if not key.startswith(("data.", "input.", "eval.", "model.weights", "train.workers")):
            raise UsageError(
                f"--set {override}: evaluation can change data.*, input.*, eval.*, model.weights and train.workers, not the run"
            )
    for folder in (run, run.parent) if run.name == "model" else (run,):
        stored = folder / "recipe.resolved.yaml"
        if stored.is_file():
            return folder, recipes.parse(recipes.read(stored), stored.name, overrides)
    if not (run / "config.json").is_file():
        raise UsageError(f"--run {run}: neither a run folder nor a model folder (no recipe.resolved.yaml, no config.json)")
    if not any(override.startswith("data.format=") for override in overrides):
        raise UsageError(
            f"--run {run}: a model folder without its run; say what to evaluate on, e.g. --set data.format=image_folder"
        )
    text = f'model: {{name: "local-dir:{run}"}}\ndata: {{}}\n'
    return run, recipes.parse(text, "model folder", overrides)


def _overlap(recipe: recipes.Recipe) -> dict[str, int]:
    """What the splits of the run share, where that was allowed: every report of such a run says it."""
    data = recipe.data
    if not data.rules.allow_overlap:
        return {}
    return load_splits(data.source, data.train, data.val, data.test, data.rules).overlap


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _find_split(recipe: recipes.Recipe, name: str) -> Split:
    """train, val and test are the recipe's; any other name is asked of the data source."""
    data = recipe.data
    if name == "test":
        return load_split(data.source, data.test)
    if name in ("train", "val"):
        splits = load_splits(data.source, data.train, data.val, data.test, data.rules)
        split = splits.train if name == "train" else splits.val
        if split is None:
            raise UsageError("--split val: the recipe has no validation split (data.val)")
        return split
    return load_split(data.source, replace(data.test, name=name, limit=None))


def match_classes(split: Split, trained: list[str], allow_missing: bool = False) -> Split:
    """The split with targets in the order of the trained classes, matched by name; raise DataError when they differ."""
    if split.classes == trained:
        return split
    if allow_missing and set(split.classes) < set(trained):
        return with_classes(trained, split, allow_missing)
    if sorted(split.classes) != sorted(trained):
        missing = [c for c in trained if c not in split.classes]
        extra = [c for c in split.classes if c not in trained]
        raise DataError(
            f"split '{split.name}': classes differ from those the model was trained on: "
            f"missing {missing[:5] or 'none'}, unknown {extra[:5] or 'none'}"
        )
    import numpy as np

    order = [split.classes.index(name) for name in trained]
    if split.task == "multilabel":
        return replace(split, classes=trained, targets=split.targets[:, order])
    return replace(split, classes=trained, targets=np.argsort(order)[split.targets])
