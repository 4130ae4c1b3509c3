"""What the evaluation commands look at: a finetuned run, a folder of weights, or a timm model that we did not train."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from riftcli import recipe as recipes
from riftcli.data.transforms import Preprocessing
from riftcli.errors import ModelError, UsageError, did_you_mean
from riftcli.evaluation.metrics_json import model_part
from riftcli.files import check_no_links
from riftcli.models.backbone import Backbone
from riftcli.models.classifier import Classifier
from riftcli.models.open_clip_folder import CONFIG
from riftcli.models.weights import folder_name, load_saved, read_config, saved_weights
from riftcli.protocols import Task
from riftcli.recipe import Recipe
from riftcli.runs.folder import in_progress, read_run
from riftcli.runs.series import _home, seeds_of

RUN_KEYS = ("data.", "input.", "eval.", "model.weights", "train.workers")  # what evaluation may change of a run


@dataclass(frozen=True)
class LoadedModel:
    """A model in eval mode on its device, and how images must be prepared for it."""

    classifier: Classifier
    preprocessing: Preprocessing
    classes: list[str]  # what its logits stand for; empty for a backbone without a head
    task: Task = "multiclass"
    epoch: int | None = None
    label: str = "the model"  # for messages

    @property
    def vit(self) -> Any:
        """The timm model."""
        return self.classifier.vit


@dataclass(frozen=True)
class Candidate:
    """One model. label: its name in tables; group: the same for the seeds of one method, which tables average."""

    label: str
    group: str
    recipe: Recipe  # of the run; of other models, what a recipe would say
    folder: Path | None = None  # the run, or the folder of weights
    weights: Path | None = None  # None for a timm model
    is_run: bool = False
    has_data: bool = True  # False where the recipe's data is a mere placeholder

    def load(self, device: torch.device) -> LoadedModel:
        """Read the weights; raise ModelError."""
        if self.weights is None:
            vit: Any = Backbone(**{**self.recipe.model.model_dump(), "pretrained": True}).build().to(device).eval()
            sizes = self.recipe.model
            own = Preprocessing.of_model(vit, sizes.image_size, sizes.crop_pct, self.recipe.input.evaluation_resize)
            return LoadedModel(Classifier(vit), own, [], label=self.label)
        vit = load_saved(self.weights.parent).to(device).eval()
        config = read_config(self.weights.parent)
        known, ours = config.get("pretrained_cfg", {}), config.get("rift", {})
        resize, keys = self.recipe.input.evaluation_resize, Preprocessing.__dataclass_fields__.keys() - {"resize"}
        if known.keys() >= keys:
            preprocessing = Preprocessing(**{key: _tuple(known[key]) for key in keys}, resize=resize)
        else:  # a folder that another tool wrote
            preprocessing = Preprocessing.of_model(vit, self.recipe.model.image_size, self.recipe.model.crop_pct, resize)
        task = ours.get("task", self.recipe.objective.task)
        return LoadedModel(Classifier(vit), preprocessing, config.get("label_names") or [], task, ours.get("epoch"), self.label)

    def entry(self, loaded: LoadedModel) -> dict[str, Any]:
        """The `model` part of a report."""
        method = self.recipe.method if self.is_run else {"adapter": "none", "regularizer": "none", "strength": None}
        return model_part(loaded.vit, method, self.weights, loaded.epoch, label=self.label, path=self.recipe.model.name)

    def pretrained(self) -> Candidate:
        """The model that this one was finetuned from; raise UsageError where nobody knows."""
        if not self.is_run:
            raise UsageError(f"{self.label}: a model without its run does not say what it was finetuned from")
        name = f"pretrained {short_name(self.recipe.model.name)}"
        return Candidate(name, name, self.recipe)

    @property
    def identity(self) -> str:
        """The same for two candidates that are the same weights, built in the same way."""
        if self.folder is not None:
            return str(self.folder.resolve())
        return repr(self.recipe.model.model_dump(exclude={"pretrained", "drop_path"}))


def short_name(model: str) -> str:
    """A backbone's name for tables: no folder, no prefix."""
    return Path(model.partition(":")[2] or model).name


def bases_of(candidates: Sequence[Candidate]) -> dict[str, Candidate]:
    """Label -> what the model was finetuned from; equal starting points are one candidate, different ones have two names."""
    starts = [candidate.pretrained() for candidate in candidates]
    return dict(zip((candidate.label for candidate in candidates), distinct(starts), strict=True))


def distinct(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Different models get different labels (and groups): the second one of a name is `name (2)`."""
    names: dict[str, list[str]] = {}
    found = []
    for candidate in candidates:
        known = names.setdefault(candidate.label, [])
        if candidate.identity not in known:
            known.append(candidate.identity)
        place = known.index(candidate.identity)
        label = candidate.label if place == 0 else f"{candidate.label} ({place + 1})"
        found.append(replace(candidate, label=label, group=label if candidate.group == candidate.label else candidate.group))
    return found


def open_runs(paths: Sequence[Path], overrides: Sequence[str]) -> list[Candidate]:
    """Runs, folders of several seeds (every seed is a candidate of one group), and folders of weights; raise UsageError."""
    found = [open_run(member, overrides) for path in paths for member in seeds_of(path) or [path]]
    homes: dict[str, list[Path]] = {}
    seen: set[Path] = set()
    for candidate in found:
        assert candidate.folder is not None
        place = candidate.folder.resolve()
        if place in seen:
            raise UsageError(f"{candidate.folder}: given twice; its numbers would count double")
        seen.add(place)
        home = _home(place)
        if home not in homes.setdefault(candidate.group, []):
            homes[candidate.group].append(home)
    return distinct([_placed(candidate, homes) for candidate in found])


def _placed(candidate: Candidate, homes: dict[str, list[Path]]) -> Candidate:
    """Groups of one name in different folders are told apart by the folder above them."""
    assert candidate.folder is not None
    place = candidate.folder.resolve()
    home = _home(place)
    if len(homes[candidate.group]) == 1:
        return candidate
    group = str(Path(*home.parts[-2:]))
    return replace(candidate, group=group, label=group if home == place else f"{group}/{place.name}")


def open_run(run: Path, overrides: Sequence[str]) -> Candidate:
    """A run folder, its model/ folder, or any folder that timm can load; raise UsageError."""
    for override in overrides:
        if not override.partition("=")[0].startswith(RUN_KEYS):
            raise UsageError(
                f"--set {override}: evaluation can change data.*, input.*, eval.*, model.weights and train.workers, not the run"
            )
    for folder in (run, run.parent) if run.name == "model" else (run,):
        stored = folder / "recipe.resolved.yaml"
        if stored.is_file():
            check_no_links(folder)  # its reports will be written into it
            recipe = recipes.stored(stored, overrides=overrides)
            weights = saved_weights(folder / "model")
            if weights is None:
                raise UsageError(f"--run {run}: {_no_weights(folder)}")
            place = folder.resolve()
            home = _home(place)
            label = place.name if home == place else f"{home.name}/{place.name}"
            return Candidate(label, home.name, recipe, folder, weights, is_run=True)
    members = seeds_of(run)
    if members:
        raise UsageError(f"--run {run}: a folder of {len(members)} runs, and this looks at one; name it, e.g. {members[0]}")
    if not run.exists():
        raise UsageError(f"{run}: no such folder{_nearest_folder(run)}")
    if not (run / CONFIG).is_file() and not (run / "config.json").is_file():
        raise UsageError(f"--run {run}: neither a run folder nor a model folder (no recipe.resolved.yaml, no config.json)")
    weights = saved_weights(run)
    if weights is None:
        raise ModelError(f"{run}: no model.safetensors beside config.json (other formats can run code when loaded)")
    own = f"input.resize={(read_config(run).get('rift') or {}).get('resize', 'pil')}"  # as it was evaluated
    recipe, has_data = _recipe_of_model(folder_name(run), "model folder", [own, *overrides])
    return Candidate(run.name, run.name, recipe, run, weights, has_data=has_data)


def _no_weights(run: Path) -> str:
    """Why a run has no weights, and the one way on."""
    state = read_run(run).get("status", "unknown")
    if state == "completed":
        return f"finished, but its weights (model/) are gone; train it again: rift finetune --recipe {run}/recipe.resolved.yaml"
    if in_progress(run):
        return "still in progress, and no weights were kept yet; wait for its first evaluation"
    return f"no weights were kept (status: {state}); finish it with --resume {run}"


def _nearest_folder(path: Path) -> str:
    """The part of a path that is not there, and what is called nearly so."""
    while not path.parent.exists():
        path = path.parent
    try:
        beside = [entry.name for entry in path.parent.iterdir() if entry.is_dir()]
    except OSError:  # a file, or a folder that others may pass but not list
        beside = []
    return did_you_mean(path.name, beside)


def open_model(name: str, overrides: Sequence[str]) -> Candidate:
    """A timm model by name, as a recipe would say it; model.image_size, model.weights, ... by --set."""
    for override in overrides:
        if not override.startswith(("model.", *RUN_KEYS)):
            raise UsageError(f"--set {override}: with --model only model.*, data.*, input.*, eval.* and train.workers count")
    recipe, has_data = _recipe_of_model(name, f"--model {name}", overrides)
    return Candidate(short_name(name), short_name(name), recipe, has_data=has_data)


def _recipe_of_model(name: str, what: str, overrides: Sequence[str]) -> tuple[Recipe, bool]:
    """(recipe, True where `overrides` name data). A recipe must have some data: without, it is one that nobody reads."""
    given = any(override.startswith("data.format=") for override in overrides)
    data = "{}" if given else "{format: digits}"
    kept = [o for o in overrides if given or not o.startswith("data.")]
    return recipes.parse(f'model: {{name: "{name}"}}\ndata: {data}\n', what, kept), given


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
