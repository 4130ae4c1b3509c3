"""The JSON Schema of recipes, built from the sections and the catalog: what an editor completes and checks against."""

from __future__ import annotations

from typing import Any

from riftcli import catalog, recipe


def recipe_schema() -> dict[str, Any]:
    """One schema with a variant per component name."""
    properties: dict[str, Any] = {name: model.model_json_schema() for name, model in recipe.SECTIONS.items()}
    for kind in recipe.COMPONENTS:
        properties[kind] = {"oneOf": [_variant(kind, name, "name") for name in catalog.names(kind)]}
    data = {"oneOf": [_variant("data", name, "format", with_splits=True) for name in catalog.names("data")]}
    properties["data"] = data
    properties["retention"] = {"type": "array", "items": data}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "riftcli recipe",
        "type": "object",
        "properties": properties,
        "required": ["model", "data"],
        "additionalProperties": False,
    }


def _variant(kind: str, name: str, key: str, with_splits: bool = False) -> dict[str, Any]:
    schema = recipe.fields_model(catalog.component(kind, name)).model_json_schema()
    schema["properties"] = {key: {"const": name}, **schema.get("properties", {})}
    schema["required"] = [key, *schema.get("required", [])]
    if with_splits:
        split = {"anyOf": [{"type": "string"}, {"type": "null"}, recipe.SplitSection.model_json_schema()]}
        schema["properties"] |= {"train": split, "val": split, "test": split}
    return schema
