"""An adapter folded into its base model, as a plain timm folder: what `rift merge` does."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from riftcli import catalog
from riftcli import recipe as recipes
from riftcli.data.transforms import Preprocessing, Resize
from riftcli.errors import ModelError, StorageError, UsageError
from riftcli.models.backbone import Backbone
from riftcli.models.loading import check_values, read_tensors
from riftcli.models.peft_format import PREFIX, WEIGHTS, load_adapter, read_adapter_config
from riftcli.models.surgery import merge
from riftcli.models.weights import check_saved, read_config, save_folder, saved_weights


def merge_run(source: Path, out: Path | None, model: str | None) -> Path:
    """Merge the adapter of a run, or one in peft's format onto `model`; returns the folder that was written."""
    stored = source / "recipe.resolved.yaml"
    if not stored.is_file():
        return _merge_folder(source, out or source / "merged", model)
    recipe = recipes.stored(stored)
    name, kind = recipe.component_name("adapter"), recipe.adapter.saved
    if kind == "plain":
        raise UsageError(f"{source}: adapter {name} inserts nothing, so there is nothing to merge: {source}/model is plain timm")
    if kind == "unmerged":
        raise UsageError(
            f"{source}: {name} is not a layer of timm's and cannot be folded in; load the run with riftcli.load('{source}')"
        )
    if not recipe.model.pretrained:
        raise UsageError(f"{source}: trained from scratch, so its base is nowhere else; {source}/model is merged already")
    config = read_config(source / "model")
    vit = Backbone(**recipe.model.model_dump()).build(config["num_classes"])
    preprocessing = Preprocessing.of_model(vit, recipe.model.image_size, recipe.model.crop_pct, recipe.input.evaluation_resize)
    target = _free(out or source / "merged")
    _put_on(vit, source / "adapter")
    merge(vit)
    check_saved(source / "model", vit, preprocessing.input_size)  # what the run itself has merged
    save_folder(target, vit, config["label_names"], preprocessing, {"rift": config["rift"]})
    return target


def _merge_folder(folder: Path, out: Path, model: str | None) -> Path:
    """An adapter folder without its run: the head's rows say how many classes there are."""
    if not (folder / WEIGHTS).is_file():
        raise UsageError(f"{folder}: neither a run folder nor an adapter folder (no recipe.resolved.yaml, no {WEIGHTS})")
    if model is None:
        raise UsageError(f"{folder}: an adapter without its run does not say what it was trained on; give --model NAME")
    config = read_adapter_config(folder)
    name = config.get("riftcli", {}).get("name")
    if name is not None and catalog.component("adapter", name).saved != "merged":  # type: ignore[attr-defined]
        raise UsageError(f"{folder}: {name} is not a layer of timm's and cannot be folded in")
    head = (config.get("modules_to_save") or ["head"])[0]
    tensors = read_tensors(folder / WEIGHTS)
    rows = [value for key, value in tensors.items() if key.startswith(f"{PREFIX}{head}.") and value.dim() == 2]
    vit = Backbone(model).build(rows[0].shape[0] if rows else 0)
    run = folder.parent / "model"
    resize: Resize = "pil" if saved_weights(run) is None else (read_config(run).get("rift") or {}).get("resize", "pil")
    target, preprocessing = _free(out), Preprocessing.of_model(vit, None, resize=resize)
    _put_on(vit, folder)
    _check_against_run(folder, vit, model, preprocessing)
    unmerged = copy.deepcopy(vit)
    save_folder(target, merge(vit), [], preprocessing)
    check_saved(target, unmerged, preprocessing.input_size)
    return target


def _check_against_run(folder: Path, vit: Any, model: str, preprocessing: Preprocessing) -> None:
    """Raise ModelError for the adapter of a run that gives other logits than the model which the run has saved."""
    kept = folder.parent / "model"
    if not (folder.parent / "recipe.resolved.yaml").is_file() or saved_weights(kept) is None:
        return
    try:
        check_saved(kept, vit, preprocessing.input_size)
    except StorageError as error:
        raise ModelError(
            f"{folder}: on {model} it gives other logits than {kept}, which the run itself has saved: another base than it was "
            f"trained on? `rift merge {folder.parent}` takes the right one"
        ) from error


def _put_on(vit: Any, folder: Path) -> None:
    config = read_adapter_config(folder)
    if "riftcli" not in config:
        load_adapter(vit, folder)
        return
    catalog.adapt(vit, config["riftcli"])
    state = {key.removeprefix(PREFIX): value for key, value in read_tensors(folder / WEIGHTS).items()}
    check_values(state, vit.state_dict(), str(folder))
    result = vit.load_state_dict(state, strict=False)
    if result.unexpected_keys:
        raise ModelError(f"{folder}: {len(result.unexpected_keys)} tensors have no place in the model")


def _free(folder: Path) -> Path:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"--out {folder}: is not an empty folder; choose another one")
    return folder
