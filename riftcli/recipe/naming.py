"""What runs are called in tables that put methods, not folders, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from riftcli.recipe import Recipe, flatten

TELLING = ("model.", "adapter.", "regularizer.")  # settings that make another method, beside its names
SILENT = ("model.weights", "model.pretrained", "adapter.name", "regularizer.name")
PLAIN = ("cross_entropy", "bce")  # objectives that go without saying
SHOWN = ("regularizer.strength",)  # by method_name itself


def method_name(method: dict[str, Any]) -> str:
    """What was done, short: `full`, `lora + rift`, `full + rift 0.5`."""
    if not method.get("pretrained", True):
        return "scratch"
    added, parts = method["regularizer"], [method["adapter"]]
    if method.get("objective") not in (None, *PLAIN):
        parts.append(method["objective"])
    if added != "none":
        parts.append(f"{added}{_strength(method['strength'])}")
    return " + ".join(parts)


def _strength(value: Any) -> str:
    """ " 0.5", " keep 0.9", or nothing for the usual 1."""
    if isinstance(value, dict):
        return "".join(f" {rule} {number:g}" for rule, number in value.items())
    return "" if value in (None, 1.0) else f" {value:g}"


def shortest(value: str, others: Sequence[str]) -> str:
    """A path, or a name with a path in it, by as many of its last parts as tell it from the others."""
    if "/" not in value:
        return value
    parts = value.split("/")
    for count in range(1, len(parts)):
        tail = parts[-count:]
        if not any(other != value and other.split("/")[-count:] == tail for other in others):
            return "/".join(tail)
    return value


def method_names(recipes: Sequence[Recipe]) -> list[str]:
    """One name per recipe; where recipes of the same method differ in backbone, adapter or regularizer, or in the learning
    rate on the same data, the names say in what: `full (model.name vit_large_patch16_224)`.
    """
    short = [method_name(recipe.method) for recipe in recipes]
    settings = [flatten(recipe.resolved) for recipe in recipes]
    names = []
    for own, name, recipe in zip(settings, short, recipes, strict=True):
        same = [i for i, other in enumerate(short) if other == name]
        keys = [key for key in own if key.startswith(TELLING) and key not in SILENT and not key.startswith(SHOWN)]
        beside = [i for i in same if recipes[i].data.name == recipe.data.name]
        telling = [key for key in keys if any(settings[i].get(key) != own[key] for i in same)]
        telling += ["optim.lr"] * any(settings[i]["optim.lr"] != own["optim.lr"] for i in beside)
        values = {key: [str(settings[i].get(key)) for i in same] for key in telling}
        detail = ", ".join(f"{key} {shortest(str(own[key]), values[key])}" for key in telling)
        names.append(f"{name} ({detail})" if detail else name)
    return names
