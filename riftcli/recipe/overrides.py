"""--set KEY=VALUE: one value of a recipe that wins over its file."""

from __future__ import annotations

from typing import Any

from riftcli.errors import UsageError
from riftcli.recipe import strict_yaml
from riftcli.recipe.sections import COMPONENTS, REFERENCE_KEYS, SPLIT_KEYS

Key = tuple[str | int, ...]  # a dotted key, split


def apply_override(raw: Any, from_set: dict[Key, str], override: str) -> None:
    """Put one `a.b=value` into a recipe as plain data and note it in `from_set`; the value is read as YAML."""
    key, equals, value = override.partition("=")
    parts = key.split(".")
    if not equals or not all(parts):
        raise UsageError(f"--set {override}: expected KEY=VALUE, e.g. --set optim.lr=1e-5")
    try:
        parsed = strict_yaml.parse(value).data
    except strict_yaml.YamlError as error:
        raise UsageError(f"--set {override}: {error.what}") from error
    here: Any = raw
    path: Key = ()
    for name in parts[:-1]:
        part = _entry(here, name, override)
        path = (*path, part)
        if isinstance(here, dict) and not isinstance(here.get(part), dict | list):
            old = here.get(part)
            here[part] = {"from": old} if isinstance(old, str) and name in ("train", "val", "test", "split") else {}
        here = here[part]
    last = _entry(here, parts[-1], override)
    path = (*path, last)
    if isinstance(here, dict):
        _forget_old_component(here, path, parsed, from_set)
    here[last] = parsed
    from_set[path] = override


def _forget_old_component(here: dict, path: Key, new_name: Any, from_set: dict[Key, str]) -> None:
    """Another regularizer by --set must not stumble over the file's keys for the old one."""
    kind, is_name = (path[0], path[1:] == ("name",)) if path[0] in COMPONENTS else (path[0], path[-1] == "format")
    if not is_name or here.get(path[-1]) == new_name:
        return
    keep = {"name"} if kind in COMPONENTS else set(REFERENCE_KEYS if kind == "reference" else SPLIT_KEYS)
    for old in [key for key in here if key not in keep and (*path[:-1], key) not in from_set]:
        del here[old]


def _entry(here: Any, name: str, override: str) -> str | int:
    """Key of a mapping, or position in a list."""
    if isinstance(here, dict):
        return name
    if isinstance(here, list) and name.isdecimal() and int(name) < len(here):
        return int(name)
    raise UsageError(f"--set {override}: there is no '{name}' in the recipe to set")
