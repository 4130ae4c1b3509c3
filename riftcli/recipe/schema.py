"""The JSON Schema of recipes, built from the sections and the catalog: what an editor completes and checks against."""

from __future__ import annotations

from typing import Any

from riftcli import catalog
from riftcli.recipe.checker import fields_model
from riftcli.recipe.sections import COMPONENTS, EVAL_SETS, RULES, SECTIONS, PromptsSection, SplitSection


def recipe_schema() -> dict[str, Any]:
    """One schema with a variant per component name."""
    properties: dict[str, Any] = {
        name: {"anyOf": [model.model_json_schema(), {"type": "null"}]} for name, model in SECTIONS.items()
    }
    for kind in COMPONENTS:
        properties[kind] = {"oneOf": [_variant(kind, name, "name") for name in catalog.names(kind)]}
    data = {"oneOf": [_variant("data", name, "format", with_splits=True) for name in catalog.names("data")]}
    properties["data"] = data
    properties["retention"] = {"type": "array", "items": data}
    reference = {"oneOf": [_variant("data", name, "format", reference=True) for name in catalog.names("data")]}
    sets = {
        "type": "array",
        "items": {"oneOf": [_variant("data", name, "format", evaluated=True) for name in catalog.names("data")]},
    }
    properties["eval"]["anyOf"][0]["properties"] |= dict.fromkeys(EVAL_SETS, sets)
    properties["prompts"] = {"anyOf": [PromptsSection.model_json_schema(), {"type": "null"}]}
    properties["reference"] = {"anyOf": [reference, {"type": "null"}]}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "riftcli recipe",
        "type": "object",
        "properties": properties,
        "required": ["model", "data"],
        "additionalProperties": False,
    }


def _variant(
    kind: str, name: str, key: str, with_splits: bool = False, reference: bool = False, evaluated: bool = False
) -> dict[str, Any]:
    schema = fields_model(catalog.component(kind, name)).model_json_schema()
    schema["properties"] = {key: {"const": name}, **schema.get("properties", {})}
    required = [] if name == COMPONENTS.get(kind) else [key]
    schema["required"] = [*required, *schema.get("required", [])]
    if kind == "regularizer" and "strength" in schema["properties"]:
        rules = [fields_model(catalog.component("strength", rule)).model_json_schema() for rule in catalog.names("strength")]
        schema["properties"]["strength"] = {"anyOf": [schema["properties"]["strength"], *rules]}
    if reference:
        size = {"anyOf": [{"type": "integer", "minimum": 2}, {"type": "null"}], "default": None}
        named = {"anyOf": [{"type": "string"}, SplitSection.model_json_schema()]}
        schema["properties"] |= {"split": named, "batch_size": size}
    if evaluated:
        named = {"anyOf": [{"type": "string"}, SplitSection.model_json_schema()]}
        prompts = {"anyOf": [PromptsSection.model_json_schema(), {"type": "null"}]}
        added = {"split": named, "metric": {"enum": catalog.names("metric")}, "prompts": prompts, "name": {"type": "string"}}
        schema["properties"] = {**added, **schema["properties"]}
    if with_splits:
        split = {"anyOf": [{"type": "string"}, {"type": "null"}, SplitSection.model_json_schema()]}
        schema["properties"] |= {"train": split, "val": split, "test": split}
        schema["properties"] |= {rule: {"type": "boolean", "default": False} for rule in RULES}
    return schema
