"""What the evaluation commands look at: a finetuned run, a folder of weights, or a timm model that we did not train."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from riftcli import catalog
from riftcli import recipe as recipes
from riftcli.errors import UsageError
from riftcli.model import Backbone, Classifier
from riftcli.recipe import Recipe
from riftcli.run import read_run
from riftcli.saved_model import load_saved, read_config, sha256
from riftcli.transforms import Preprocessing

RUN_KEYS = ("data.", "input.", "eval.", "model.weights", "train.workers")  # what evaluation may change of a run


@dataclass(frozen=True)
class Loaded:
    """A model in eval mode on its device, and how images must be prepared for it."""

    classifier: Classifier
    preprocessing: Preprocessing
    classes: list[str]  # what its logits stand for; empty for a backbone without a head
    epoch: int | None = None

    @property
    def vit(self) -> Any:
        """The timm model."""
        return self.classifier.vit


@dataclass(frozen=True)
class Subject:
    """One model. label: its name in tables; group: the same for the seeds of one method, which tables average."""

    label: str
    group: str
    recipe: Recipe  # of the run; of other models, what a recipe would say
    folder: Path | None = None  # the run, or the folder of weights
    weights: Path | None = None  # None for a timm model
    is_run: bool = False

    def load(self, device: torch.device) -> Loaded:
        """Read the weights; raise ModelError."""
        if self.weights is None:
            vit: Any = Backbone(**{**self.recipe.model.model_dump(), "pretrained": True}).build().to(device).eval()
            sizes = self.recipe.model
            return Loaded(Classifier(vit), Preprocessing.of_model(vit, sizes.image_size, sizes.crop_pct), [])
        vit = load_saved(self.weights.parent, catalog.adapt).to(device).eval()
        config = read_config(self.weights.parent)
        known = config.get("pretrained_cfg", {})
        if all(key in known for key in Preprocessing.__dataclass_fields__):
            preprocessing = Preprocessing(**{key: _tuple(known[key]) for key in Preprocessing.__dataclass_fields__})
        else:  # a folder that another tool wrote
            preprocessing = Preprocessing.of_model(vit, self.recipe.model.image_size, self.recipe.model.crop_pct)
        return Loaded(Classifier(vit), preprocessing, config.get("label_names") or [], config.get("rift", {}).get("epoch"))

    def entry(self, loaded: Loaded) -> dict[str, Any]:
        """The `model` part of a report."""
        how = self.recipe.method if self.is_run else {"adapter": "none", "regularizer": "none", "strength": None}
        return {
            "label": self.label,
            "path": str(self.weights.parent) if self.weights else self.recipe.model.name,
            "architecture": loaded.vit.pretrained_cfg["architecture"],
            "method": how,
            "sha256": sha256(self.weights) if self.weights else None,
            "weights": "raw",
            "epoch": loaded.epoch,
            "params": sum(p.numel() for p in loaded.vit.parameters()),
            "trainable_params": None,
        }

    def pretrained(self) -> Subject:
        """The model that this one was finetuned from; raise UsageError where nobody knows."""
        if not self.is_run:
            raise UsageError(f"{self.label}: a model without its run does not say what it was finetuned from")
        name = self.recipe.model.name
        return Subject(f"pretrained {short_name(name)}", f"pretrained {short_name(name)}", self.recipe)


def short_name(model: str) -> str:
    """A backbone's name for tables: no folder, no prefix."""
    return Path(model.partition(":")[2] or model).name


def open_runs(paths: list[Path], overrides: list[str]) -> list[Subject]:
    """Runs, folders of several seeds (every seed is a subject of one group), and folders of weights; raise UsageError."""
    found: list[Subject] = []
    for path in paths:
        members = seeds_of(path)
        group = path.resolve().name
        for member in members or [path]:
            subject = open_run(member, overrides)
            found.append(replace(subject, group=group, label=f"{group}/{member.name}") if members else subject)
    labels = [subject.label for subject in found]
    for i, subject in enumerate(found):
        if labels.count(subject.label) > 1:  # runs of the same name in different folders
            name = str(subject.folder)
            found[i] = replace(subject, label=name, group=name if subject.group == subject.label else subject.group)
    return found


def seeds_of(path: Path) -> list[Path]:
    """The runs below a folder of --repeats or --folds, in order; none for a run itself."""
    if (path / "run.json").is_file():
        return []
    return sorted((file.parent for file in path.glob("*/run.json")), key=lambda run: (len(run.name), run.name))


def open_run(run: Path, overrides: list[str]) -> Subject:
    """A run folder, its model/ folder, or any folder that timm can load; raise UsageError."""
    for override in overrides:
        if not override.partition("=")[0].startswith(RUN_KEYS):
            raise UsageError(
                f"--set {override}: evaluation can change data.*, input.*, eval.*, model.weights and train.workers, not the run"
            )
    for folder in (run, run.parent) if run.name == "model" else (run,):
        stored = folder / "recipe.resolved.yaml"
        if stored.is_file():
            recipe = recipes.parse(recipes.read(stored), stored.name, overrides)
            weights = folder / "model" / "model.safetensors"
            if not weights.is_file():
                state = read_run(folder).get("status", "unknown")
                raise UsageError(f"--run {run}: no weights were kept (status: {state}); finish it with --resume {folder}")
            return Subject(*_labels(folder.resolve()), recipe, folder, weights, is_run=True)
    members = seeds_of(run)
    if members:
        raise UsageError(f"--run {run}: a folder of {len(members)} runs, and this looks at one; name it, e.g. {members[0]}")
    if not (run / "config.json").is_file():
        raise UsageError(f"--run {run}: neither a run folder nor a model folder (no recipe.resolved.yaml, no config.json)")
    recipe = _recipe_of_model(f"local-dir:{run}", "model folder", overrides)
    return Subject(run.name, run.name, recipe, run, run / "model.safetensors")


def _labels(folder: Path) -> tuple[str, str]:
    """(label, group): a seed or fold inside a folder of several is named with that folder."""
    if re.fullmatch(r"[sf]\d+", folder.name):
        return f"{folder.parent.name}/{folder.name}", folder.parent.name
    return folder.name, folder.name


def open_model(name: str, overrides: list[str]) -> Subject:
    """A timm model by name, as a recipe would say it; model.image_size, model.weights, ... by --set."""
    return Subject(short_name(name), short_name(name), _recipe_of_model(name, f"--model {name}", overrides))


NO_DATA = "digits"  # a recipe needs some data; this one is never read unless --set data.format says so


def _recipe_of_model(name: str, what: str, overrides: list[str]) -> Recipe:
    given = any(override.startswith("data.format=") for override in overrides)
    text = f'model: {{name: "{name}"}}\ndata: {{}}\n' if given else f'model: {{name: "{name}"}}\ndata: {{format: {NO_DATA}}}\n'
    return recipes.parse(text, what, overrides)


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
