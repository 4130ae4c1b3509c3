"""A checked recipe as plain values: what is written into the run folder and read back."""

from __future__ import annotations

import dataclasses
from typing import Any

from riftcli.recipe.sections import (
    COMPONENTS,
    SECTIONS,
    TOP_LEVEL,
    DataSection,
    SplitSpec,
)


def _resolved_data(data: DataSection) -> dict[str, Any]:
    def spec(split: SplitSpec | None) -> Any:
        if split is None:
            return None
        if split == SplitSpec(split.name):
            return split.name
        named = {k: v for k, v in dataclasses.asdict(split).items() if v is not None and k != "name"}
        if split.folds is None:
            del named["fold"]
        return {"from": split.name, **named}

    fields = dataclasses.asdict(data.source)
    splits = {"train": spec(data.train), "val": spec(data.val), "test": spec(data.test)}
    return {"format": data.format, **fields, **splits, **dataclasses.asdict(data.rules)}


def resolved_values(parts: dict[str, Any], raw: dict[str, Any]) -> dict[str, Any]:
    """Every value of a recipe, defaults too, by section."""
    out: dict[str, Any] = {}
    for key in TOP_LEVEL:
        if key in SECTIONS:
            out[key] = parts[key].model_dump(by_alias=True)
        elif key in COMPONENTS:
            name = (raw.get(key) or {}).get("name", COMPONENTS[key])
            out[key] = {"name": name, **dataclasses.asdict(parts[key])}
        elif key == "data":
            out[key] = _resolved_data(parts[key])
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
