"""Evaluate the saved weights of a run: what `rift eval` does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from riftcli import catalog, dist, evaluate
from riftcli import recipe as recipes
from riftcli import run as runs
from riftcli.console import Console, Stopwatch
from riftcli.errors import DataError, UsageError, nearest
from riftcli.model import Backbone, Classifier, load_saved, read_config, sha256
from riftcli.protocols import Split
from riftcli.splits import load_split, load_splits
from riftcli.transforms import Preprocessing


def evaluate_run(run: Path, metrics: list[str], split_name: str, overrides: list[str], device: str = "auto") -> dict[str, Any]:
    """Score a run's kept weights on a split; writes RUN/eval/<dataset>-<split>/ and returns the report.

    `run` is a run folder or its model/ folder. Classes are matched by name with those the model was trained on.
    """
    clock = Stopwatch()
    torch_device = dist.init(device)
    console = Console(quiet=not dist.is_main())
    folder = run.parent if not (run / "run.json").is_file() and (run.parent / "run.json").is_file() else run
    stored = folder / "recipe.resolved.yaml"
    if not stored.is_file():
        raise UsageError(f"--run {run}: not a run folder and not the model folder of one (no recipe.resolved.yaml)")
    recipe = recipes.parse(stored.read_text(encoding="utf-8"), stored.name, overrides)
    names = metrics or recipe.eval.metrics
    for name in names:
        if name not in catalog.CATALOG["metric"]:
            known = catalog.names("metric")
            raise UsageError(f"--metrics {name}: unknown metric{nearest(name, known)}; one of: {', '.join(known)}")

    vit: Any = load_saved(folder)
    vit.to(torch_device)
    config = read_config(folder / "model")
    preprocessing = Preprocessing(**{k: _tuple(config["pretrained_cfg"][k]) for k in Preprocessing.__dataclass_fields__})
    split = match_classes(_find_split(recipe, split_name), config["label_names"])

    def encoded(model: torch.nn.Module, what: str) -> Any:
        with console.progress(f"encoding with the {what} model", len(split)) as bar:
            return evaluate.encode_split(
                model, split, preprocessing, torch_device, recipe.eval.batch_size, recipe.train.workers, bar.advance
            )

    table = encoded(Classifier(vit), "finetuned")
    reference = None
    if any(catalog.component("metric", name).needs_reference for name in names):  # type: ignore[attr-defined]
        pretrained = Backbone(**{**recipe.model.model_dump(), "pretrained": True}).build().to(torch_device)
        reference = encoded(Classifier(pretrained), "pretrained").features
    seen = evaluate.predictions(split, table, reference)
    weights = folder / "model" / "model.safetensors"
    from riftcli.train import method

    model = {
        "path": str(weights.parent),
        "architecture": config["architecture"],
        "method": method(recipe),
        "sha256": sha256(weights),
        "weights": "raw",
        "epoch": config.get("rift", {}).get("epoch"),
        "params": sum(p.numel() for p in vit.parameters()),
        "trainable_params": None,
    }
    report = evaluate.report("eval", model, split, seen, names, recipe.data.name)
    report["timing"] = {
        "seconds": clock.seconds,
        "images_per_second": len(split) / clock.seconds,
        "peak_memory_bytes": evaluate.peak_memory_bytes(torch_device),
    }
    report["env"] = evaluate.environment(torch_device, "fp32", runs.read_run(folder).get("seed"))
    target = folder / "eval" / f"{recipe.data.name}-{split.name}"
    if dist.is_main():
        evaluate.write_tables(target, split, seen)
        runs.write_json(target / "metrics.json", report)
    dist.barrier()
    dist.close()
    return {**report, "written_to": str(target / "metrics.json")}


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _find_split(recipe: recipes.Recipe, name: str) -> Split:
    """train, val and test are the recipe's; any other name is asked of the data source."""
    data = recipe.data
    if name == "test":
        return load_split(data.source, data.test)
    if name in ("train", "val"):
        splits = load_splits(data.source, data.train, data.val, data.test)
        split = splits.train if name == "train" else splits.val
        if split is None:
            raise UsageError("--split val: the recipe has no validation split (data.val)")
        return split
    return load_split(data.source, replace(data.test, name=name, limit=None))


def match_classes(split: Split, trained: list[str]) -> Split:
    """The split with targets in the order of the trained classes, matched by name; raise DataError when they differ."""
    if split.classes == trained:
        return split
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
