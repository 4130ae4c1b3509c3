"""A map between two models from the images of a data set: what `rift align` does."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import torch

from riftcli import dist
from riftcli.console import Stopwatch
from riftcli.data.reading import sift
from riftcli.errors import RiftError, UsageError
from riftcli.evaluation.candidates import Candidate
from riftcli.evaluation.data_sets import EvalData, list_split
from riftcli.evaluation.encoder import Encoder
from riftcli.functional.feature_maps import cosine
from riftcli.models.feature_map import FeatureMap
from riftcli.models.loading import read_tensors
from riftcli.runs.provenance import environment, now
from riftcli.runs.result_table import ResultTable, Row
from riftcli.training.feature_maps import Fitted, MapOptions, fit_map, linear
from riftcli.version import __version__


def align(
    old: Candidate, new: Candidate, source: EvalData, split: str, options: MapOptions, encoder: Encoder
) -> tuple[FeatureMap, ResultTable]:
    """Fit on one split of a data set; collective, every rank gets the same map. The table's rows say how near the mapped
    features come to the old ones, on the images of the fit and on the test split.
    """
    clock, console = Stopwatch(), encoder.console
    names = [split, *(["test"] if split != "test" else [])]
    sets = {name: sift(list_split(source, name), source.input, console)[0] for name in names}
    if options.kind == "slerp" and sets[split].task != "multiclass":
        raise UsageError(f"--map slerp: chooses its share by classes, and {source.name} is {sets[split].task}; use procrustes")
    loaded = {"old": old.load(encoder.device), "new": new.load(encoder.device)}
    entries = [old.entry(loaded["old"]), new.entry(loaded["new"])]
    learned = learned_rotation(old, new, loaded["new"].vit.num_features) if options.kind == "rift" else None
    features = {
        name: {
            side: encoder.encode(model, data, source.input, f"{source.name}, {name}, {side} model").features
            for side, model in loaded.items()
        }
        for name, data in sets.items()
    }
    found = _fitted(features[split], sets[split], options, encoder) if learned is None else Fitted(learned)
    rows: list[Row] = []
    for name, data in sets.items():
        facts: Row = {"model": new.label, "group": new.group, "data": source.name, "split": data.name, "reference": old.label}
        rows.append({**facts, "map": options.kind, "n": len(data), **_nearness(found.map, **features[name])})
    about: dict[str, Any] = {
        "old": _identity(old, entries[0]),
        "new": _identity(new, entries[1]),
        "data": source.name,
        "split": split,
    }
    about |= {"n": len(sets[split]), "settings": asdict(options), "created": now(), "riftcli": __version__}
    env = environment(encoder.device, encoder.precision, dist.world_size(), options.seed)
    tables = {"history": found.history} if found.history else {}
    settings = {**asdict(options), "weights": list(options.weights), "share": found.map.share, "split": split}
    table = ResultTable("align", settings, entries, rows, env, tables, clock.seconds)
    return replace(found.map, about=about), table


def learned_rotation(old: Candidate, new: Candidate, width: int) -> FeatureMap:
    """Q^T of a RIFT run with a learned Q, as it was at the last step: features of that run are about F_0 Q, so that times Q^T
    they are about F_0. Raises UsageError for a run that learned none, and for another old model than its start.
    """
    config = new.recipe.regularizer
    target = config.target(width, None) if new.recipe.component_name("regularizer") == "rift" else None
    files = sorted(new.folder.glob("last/step-????????/penalty.safetensors")) if new.folder is not None else []
    state = read_tensors(files[-1]) if files else {}
    if target is None or target.rotation is None or "rotation" not in state:
        raise UsageError(
            f"{new.label}: learned no Q (it takes a run with regularizer.name rift and q learn); use --map procrustes"
        )
    if old.identity != new.pretrained().identity:
        raise UsageError(f"--map rift: the Q of {new.label} leads to what it was finetuned from, not to {old.label}")
    with torch.no_grad():
        target.rotation.set_weight(state["rotation"])
        return FeatureMap("rift", width, width, linear(target.rotation.matrix().float()))


def _fitted(features: dict[str, torch.Tensor], split: Any, options: MapOptions, encoder: Encoder) -> Fitted:
    """On rank 0, then handed to the others: the fit is a matter of seconds."""
    labels = torch.from_numpy(split.targets) if split.task == "multiclass" else None
    found: Fitted | RiftError | None = None
    if dist.is_main():
        try:
            with encoder.console.progress(f"fitting a {options.kind} map", options.epochs) as bar:
                found = fit_map(features["old"], features["new"], labels, options, bar.advance)
        except RiftError as error:  # the other ranks wait for an answer
            found = error
    found = dist.broadcast_object(found)
    if isinstance(found, RiftError):
        raise found
    assert found is not None
    return found


def _nearness(found: FeatureMap, old: torch.Tensor, new: torch.Tensor) -> Row:
    """Mean cosine to the old features of the same images: of the new ones as they are, mapped, and forward."""
    plain, mapped = found.old(old), found.to_old(new, old)
    row: Row = {"cosine_before": cosine(old, new) if old.shape[1] == new.shape[1] else None, "cosine": cosine(plain, mapped)}
    row["cosine_forward"] = cosine(found.to_new(old), mapped) if found.forward is not None else None
    return row


def _identity(model: Candidate, entry: dict[str, Any]) -> dict[str, Any]:
    return {"label": model.label, "name": model.recipe.model.name, "path": str(model.folder or ""), "sha256": entry.get("sha256")}
