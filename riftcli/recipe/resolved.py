"""A checked recipe as plain values: what is written into the run folder and read back."""

from __future__ import annotations

import dataclasses
from typing import Any

from riftcli.recipe.data_sources import DataSection, EvalSet, ReferenceSection, SplitSpec
from riftcli.recipe.sections import COMPONENTS, EVAL_SETS, SECTIONS, TOP_LEVEL


def _spec(split: SplitSpec | None) -> Any:
    if split is None:
        return None
    if split == SplitSpec(split.name):
        return split.name
    named = {k: v for k, v in dataclasses.asdict(split).items() if v is not None and k != "name"}
    if split.folds is None:
        del named["fold"]
    return {"from": split.name, **named}


def _resolved_reference(reference: ReferenceSection) -> dict[str, Any]:
    fields = dataclasses.asdict(reference.source)
    return {"format": reference.format, **fields, "split": _spec(reference.split), "batch_size": reference.batch_size}


def _resolved_set(one: EvalSet) -> dict[str, Any]:
    prompts = None if one.prompts is None else one.prompts.model_dump()
    values = {"split": _spec(one.split), "metric": one.metric, "prompts": prompts}
    fields = dataclasses.asdict(one.source)
    if one.title is not None:
        values["name"] = one.title
    return {"format": one.format, **fields, **values}


def _resolved_data(data: DataSection) -> dict[str, Any]:
    fields = dataclasses.asdict(data.source)
    splits = {"train": _spec(data.train), "val": _spec(data.val), "test": _spec(data.test)}
    return {"format": data.format, **fields, **splits, **dataclasses.asdict(data.rules)}


def resolved_values(parts: dict[str, Any], raw: dict[str, Any]) -> dict[str, Any]:
    """Every value of a recipe, defaults too, by section."""
    out: dict[str, Any] = {}
    for key in TOP_LEVEL:
        if key in SECTIONS:
            out[key] = parts[key].model_dump(by_alias=True)
            if key == "eval":
                out[key] |= {name: [_resolved_set(one) for one in parts[name]] for name in EVAL_SETS if parts[name]}
        elif key == "prompts":
            out[key] = None if parts[key] is None else parts[key].model_dump()
        elif key in COMPONENTS:
            name = (raw.get(key) or {}).get("name", COMPONENTS[key])
            out[key] = {"name": name, **dataclasses.asdict(parts[key])}
            if key == "regularizer" and parts["strength"] is not None:
                out[key]["strength"] = dataclasses.asdict(parts["strength"])
        elif key == "data":
            out[key] = _resolved_data(parts[key])
        elif key == "reference":
            out[key] = None if parts[key] is None else _resolved_reference(parts[key])
        else:
            out[key] = [_resolved_data(data) for data in parts[key]]
    return out


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Nested data as {dotted key: value}; empty containers are values."""
    if isinstance(tree, dict) and tree:
        items = list(tree.items())
    elif isinstance(tree, list) and any(isinstance(item, dict) for item in tree):
        items = list(enumerate(tree))
    else:
        return {prefix: tree}
    flat: dict[str, Any] = {}
    for key, value in items:
        flat |= flatten(value, f"{prefix}.{key}" if prefix else str(key))
    return flat
