"""What a run is worth beyond its own test split: the same classes elsewhere, classes it never saw, captions; before and after."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from riftcli import catalog
from riftcli.errors import UsageError
from riftcli.evaluation.encoder import Encoder
from riftcli.evaluation.zero_shot import captions_of, geometry_kept, mean_of, restricted, scored, zero_shot_weights
from riftcli.functional.retrieval import recall_at
from riftcli.models.image_text import TextTower, text_tower
from riftcli.recipe import Recipe
from riftcli.recipe.data_sources import EvalSet
from riftcli.recipe.prompts import class_texts
from riftcli.training.data import RunData
from riftcli.training.texts import task_texts


@dataclass(frozen=True)
class Start:
    """What the text tower said before training. heads: `task`, `zero_shot/0`, ... -> (C, E); captions: `captions/0` -> (M, E)."""

    heads: dict[str, torch.Tensor]
    captions: dict[str, torch.Tensor]


def note_start(recipe: Recipe, data: RunData, vit: Any, encoder: Encoder) -> Start | None:
    """None for a network that reads images alone; raise UsageError where that is asked for texts."""
    tower = text_tower(vit)
    for key in ("zero_shot", "captions"):
        if tower is None and data.beside.get(key):
            raise UsageError(
                f"eval.{key}: model.name {recipe.model.name} has no text tower; use a model with two, e.g. "
                "open_clip:ViT-B-16/laion400m_e32"
            )
    if tower is None:
        return None
    heads = {"task": zero_shot_weights(tower, task_texts(recipe, data.splits.train.classes), encoder.device)}
    for i, texts in enumerate(_set_texts(recipe, data)):
        heads[f"zero_shot/{i}"] = zero_shot_weights(tower, texts, encoder.device)
    return Start(heads, _embedded_captions(data, tower, encoder, "with the pretrained model"))


def _set_texts(recipe: Recipe, data: RunData) -> list[list[list[str]]]:
    """Prompts of the classes of every zero-shot set."""
    found = []
    for i, (one, split) in enumerate(zip(recipe.zero_shot, data.beside.get("zero_shot", []), strict=True)):
        wording = one.prompts or recipe.wording.model_copy(update={"class_names": None})
        found.append(class_texts(split.classes, wording.templates, wording.class_names, f"eval.zero_shot.{i}.prompts"))
    return found


def _embedded_captions(data: RunData, tower: TextTower, encoder: Encoder, what: str) -> dict[str, torch.Tensor]:
    sets = data.beside.get("captions", [])
    return {f"captions/{i}": encoder.texts(tower, captions_of(split)[0], f"captions {what}") for i, split in enumerate(sets)}


def measure_transfer(setup: Any) -> dict[str, Any]:
    """Parts of the final report: `zero_shot_start`, `shifted`, `zero_shot`, `captions`, those that there are; collective.

    Each set has its metric `before` (the pretrained model: its zero-shot head; None without a text tower) and `after`; `mean`
    is over the sets. Logits of a shifted set are those of the classes that it has.
    """
    recipe, data, start = setup.recipe, setup.data, setup.start
    report: dict[str, Any] = {}
    if start is not None and recipe.needs_pretrained:
        metrics = {name: catalog.component("metric", name) for name in recipe.eval.metrics}
        names = [name for name, metric in metrics.items() if not metric.needs_pretrained]  # type: ignore[attr-defined]
        old = setup.pretrained.splits[data.splits.reported_as]
        own = scored(data.splits.reported, old, old @ start.heads["task"].T, names, recipe.eval.group)
        report["zero_shot_start"] = {name: entry for name, entry in own.items() if entry["value"] is not None}
    if data.beside.get("shifted"):
        report["shifted"] = _with_mean(recipe.shifted, _shifted(setup))
    if data.beside.get("zero_shot"):
        report["zero_shot"] = _with_mean(recipe.zero_shot, _zero_shot(setup))
    if data.beside.get("captions"):
        report["captions"] = {one.name: entry for one, entry in zip(recipe.captions, _captions(setup), strict=True)}
    return report


def _entry(before: dict[str, Any] | None, after: dict[str, Any], metric: str, n: int) -> dict[str, Any]:
    old = None if before is None else before[metric]["value"]
    more = after[metric]["higher_is_better"]
    return {"n": n, "metric": metric, "before": old, "after": after[metric]["value"], "higher_is_better": more}


def _with_mean(sets: tuple[EvalSet, ...], entries: list[dict[str, Any]]) -> dict[str, Any]:
    names = [one.name for one in sets]
    titled = [name if names.count(name) == 1 else f"{name} {sets[i].split.name}-{i}" for i, name in enumerate(names)]
    mean = {key: mean_of(entries, key) for key in ("before", "after")}
    return {"sets": dict(zip(titled, entries, strict=True)), "mean": mean}


def _shifted(setup: Any) -> list[dict[str, Any]]:
    recipe, start, found = setup.recipe, setup.start, []
    for i, (one, split) in enumerate(zip(recipe.shifted, setup.data.beside["shifted"], strict=True)):
        seen, classes = setup.predict(split), setup.data.splits.train.classes
        after = scored(split, seen.features, restricted(seen.logits, split, classes), [one.metric], recipe.eval.group)
        before = None
        if start is not None:
            old = setup.pretrained.splits[f"shifted/{i}"]
            logits = restricted(old @ start.heads["task"].T, split, classes)
            before = scored(split, old, logits, [one.metric], recipe.eval.group)
        found.append(_entry(before, after, one.metric, len(split)))
    return found


def _zero_shot(setup: Any) -> list[dict[str, Any]]:
    recipe, found = setup.recipe, []
    tower = text_tower(setup.network.vit)
    assert tower is not None
    sets = zip(recipe.zero_shot, setup.data.beside["zero_shot"], _set_texts(recipe, setup.data), strict=True)
    for i, (one, split, texts) in enumerate(sets):
        weights = zero_shot_weights(tower, texts, setup.device)
        features, old = setup.predict(split).features, setup.pretrained.splits[f"zero_shot/{i}"]
        after = scored(split, features, features @ weights.T, [one.metric], recipe.eval.group)
        before = scored(split, old, old @ setup.start.heads[f"zero_shot/{i}"].T, [one.metric], recipe.eval.group)
        found.append(_entry(before, after, one.metric, len(split)))
    return found


def _captions(setup: Any) -> list[dict[str, Any]]:
    """Retrieval before and after, and RSA between the two, of every caption set."""
    found = []
    tower = text_tower(setup.network.vit)
    assert tower is not None
    encoder = Encoder(
        setup.device,
        setup.recipe.eval.batch_size,
        setup.recipe.train.workers,
        None,
        setup.console,
        precision=setup.recipe.eval.precision,
    )
    texts_after = _embedded_captions(setup.data, tower, encoder, "with the finetuned model")
    for i, split in enumerate(setup.data.beside["captions"]):
        lines, owners = captions_of(split)
        place = f"captions/{i}"
        before = (setup.pretrained.splits[place], setup.start.captions[place])
        after = (setup.predict(split).features, texts_after[place])
        recalls = {when: recall_at(own[0], own[1], owners) for when, own in (("before", before), ("after", after))}
        found.append({"n": len(split), "captions": len(lines), **recalls, **geometry_kept(before, after, owners)})
    return found
