"""What a key of a recipe does, its default and its range: the sections and the catalog, asked for one key."""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from dataclasses import dataclass
from typing import Any

from riftcli import catalog
from riftcli.errors import UsageError, did_you_mean
from riftcli.recipe.checker import fields_model
from riftcli.recipe.sections import COMPONENTS, RULES, SECTIONS, PromptsSection, SplitSection

CHOSEN_BY = {**dict.fromkeys(COMPONENTS, "name"), "data": "format"}  # section -> the key that picks a component


@dataclass(frozen=True)
class Meaning:
    """One key. owner: the component whose key it is, where a section has several; what: one line; default: None for none."""

    key: str
    owner: str
    kind: str
    default: str | None
    limits: str
    what: str


def explain(key: str) -> list[Meaning]:
    """The meanings of a dotted key, one per component that has it; raise UsageError with the nearest key."""
    found = [meaning for meaning in meanings() if meaning.key == key]
    if not found:
        raise UsageError(f"{key}: no such key{did_you_mean(key, all_keys())}; `rift recipes schema` has them all")
    return found


def all_keys() -> list[str]:
    """Every dotted key, sorted."""
    return sorted({meaning.key for meaning in meanings()})


def meanings() -> list[Meaning]:
    """Every key of every section and component."""
    found: list[Meaning] = []
    for section, model in {**SECTIONS, "prompts": PromptsSection}.items():
        found += [_of_field(f"{section}.{name}", "", field) for name, field in _fields(model)]
    for split in ("train", "val", "test"):
        found += [_of_field(f"data.{split}.{name}", "", field) for name, field in _fields(SplitSection)]
    found += [Meaning(f"data.{rule}", "", "true or false", "false", "", _RULES[rule]) for rule in RULES]
    for kind, chooser in CHOSEN_BY.items():
        names = catalog.names(kind)
        default = COMPONENTS.get(kind)
        found.append(Meaning(f"{kind}.{chooser}", "", "text", default, f"one of: {', '.join(names)}", f"which {kind}"))
        for name in names:
            found += _of_component(kind, name)
    return found


_RULES = {
    "allow_overlap": "samples or groups in two splits are counted in the report instead of refused",
    "allow_missing_classes": "a split that is not trained on may lack classes",
}


def _fields(model: Any) -> list[tuple[str, Any]]:
    return [(field.alias or name, field) for name, field in model.model_fields.items()]


def _of_field(key: str, owner: str, field: Any, what: str | None = None) -> Meaning:
    limits = [_LIMITS[type(m).__name__].format(m) for m in field.metadata if type(m).__name__ in _LIMITS]
    if field.is_required():
        default = None
    else:
        value = field.get_default(call_default_factory=True)
        default = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    return Meaning(key, owner, _kind(field.annotation), default, ", ".join(limits), what or field.description or "")


_LIMITS = {"Gt": "above {0.gt}", "Ge": "{0.ge} or more", "Lt": "below {0.lt}", "Le": "{0.le} or less"}


def _of_component(kind: str, name: str) -> list[Meaning]:
    cls: Any = catalog.component(kind, name)
    model = fields_model(cls)
    text = re.sub(r"\s+", " ", cls.__doc__ or "")
    own = {field.name for field in dataclasses.fields(cls)}
    return [_of_field(f"{kind}.{key}", name, field, _sentence(text, key, own)) for key, field in _fields(model)]


def _sentence(text: str, key: str, keys: set[str]) -> str:
    """What a docstring says about a key: from `key:` to the next key's, or the sentence that names it."""
    begin = re.search(rf"(?<![\w.]){key}(, \w+)*( and \w+)?: ", text)
    if begin:
        rest = text[begin.end() :]
        others = [m.start() for other in keys - {key} if (m := re.search(rf"(?<![\w.]){other}(, \w+)*: ", rest))]
        return rest[: min(others, default=len(rest))].strip(" ;,.")
    return next((part.strip() for part in re.split(r"(?<=[.;]) ", text) if re.search(rf"\b{key}\b", part)), "")


def _kind(annotation: Any) -> str:
    """A type in words."""
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _kind(inner[0])
    if origin is typing.Literal:
        return f"one of: {', '.join(map(str, inner))}"
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(_kind(part) for part in inner))
    if origin in (list, tuple):
        return f"list of {_kind(inner[0])}" if inner else "list"
    if origin is dict:
        return "mapping"
    return {int: "whole number", float: "number", str: "text", bool: "true or false", type(None): "null"}.get(
        annotation, getattr(annotation, "__name__", str(annotation))
    )
