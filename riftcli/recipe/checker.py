"""Collects every error of a YAML file, with its line and the nearest valid name, instead of stopping at the first."""

from __future__ import annotations

import dataclasses
import types
import typing
from typing import Any

from pydantic import BaseModel, Field, ValidationError, create_model

from riftcli.errors import UsageError, did_you_mean
from riftcli.recipe import strict_yaml
from riftcli.recipe.messages import show, wording
from riftcli.recipe.overrides import Key, apply_override
from riftcli.recipe.section import STRICT


class Checker:
    """Collects errors instead of stopping at the first one."""

    def __init__(self, text: str, filename: str, what: str, keys: list[str]) -> None:
        """Read the text; raise UsageError at once for what is no YAML mapping. what: "recipe", for messages; keys: allowed."""
        try:
            document = strict_yaml.parse(text)
        except strict_yaml.YamlError as error:
            raise UsageError(f"{what} {filename}:{error.line}: {error.what}") from error
        if not isinstance(document.data, dict):
            raise UsageError(f"{what} {filename}:1: a {what} is a mapping with the keys {', '.join(keys)}")
        self.filename, self.raw, self.lines, self.what = filename, document.data, document.lines, what
        self.from_set: dict[Key, str] = {}
        self.errors: list[tuple[bool, int, str]] = []

    def apply(self, override: str) -> None:
        """One `a.b=value`; raise UsageError for what cannot be set."""
        apply_override(self.raw, self.from_set, override)

    def fail(self, path: Key, what: str, allowed: list[str] | None = None) -> None:
        """Note an error at `path`, to be sorted by line; values from --set are named as such and come last."""
        given = [key for key in self.from_set if path[: len(key)] == key or key[: len(path)] == path]
        known = path
        while known and known not in self.lines:
            known = known[:-1]
        line = self.lines.get(known, 1)
        where = f"--set {self.from_set[given[0]]}: " if given else f"{self.what} {self.filename}:{line}: "
        extra = f"\n  allowed here: {', '.join(allowed)}" if allowed else ""
        value = self.from_set[given[0]].partition("=")[2] if given else ""
        if "," in value and value[:1] not in "[{" and what.startswith("expected"):
            what += "; for a run with each value write a sweep (`rift sweep --help`)"
        self.errors.append((bool(given), line, f"{where}{'.'.join(map(str, path))}: {what}{extra}"))

    def raise_errors(self) -> None:
        """Raise UsageError with every error so far, sorted by line."""
        if self.errors:
            raise UsageError("\n".join(text for _, _, text in sorted(self.errors, key=lambda e: e[:2])))

    def section(self, prefix: Key, model: type[BaseModel], raw: Any) -> Any:
        """Validate a mapping against a pydantic model; None after errors."""
        raw = {} if raw is None else raw
        if not isinstance(raw, dict):
            self.fail(prefix, f"expected keys below it, got {show(raw)}", keys_of(model))
            return None
        try:
            return model.model_validate(raw)
        except ValidationError as error:
            self._translate(prefix, model, raw, error)
            return None

    def _translate(self, prefix: Key, model: type[BaseModel], raw: Any, error: ValidationError) -> None:
        seen: dict[Key, tuple[list[str], Any]] = {}
        for problem in error.errors():
            # pydantic appends the union member it tried ("list[float]"): keep the part that exists in the recipe
            loc: list[str | int] = []
            value: Any = raw
            for part in problem["loc"]:
                inside = isinstance(value, dict) and part in value or isinstance(value, list) and isinstance(part, int)
                if not inside:
                    loc = loc or [part]
                    break
                value = value[part]
                loc.append(part)
            path = (*prefix, *loc)
            if problem["type"] == "extra_forbidden":
                known = keys_of(_model_below(model, loc[:-1]))
                self.fail(path, f"unknown key{did_you_mean(str(loc[-1]), known)}", known)
            elif problem["type"] == "missing":
                self.fail(path, "missing; it has no default")
            else:
                seen.setdefault(path, ([], value))[0].append(wording(problem))
        for path, (wanted, value) in seen.items():
            self.fail(path, f"expected {' or '.join(dict.fromkeys(wanted))}, got {show(value)}")

    def component(self, prefix: Key, cls: Any, raw: dict[str, Any]) -> Any:
        """The component with these fields; None after errors."""
        values = self.section(prefix, fields_model(cls), raw)
        if values is None:
            return None
        try:
            return cls(**{f.name: getattr(values, f.name) for f in dataclasses.fields(cls)})
        except ValueError as error:
            field, _, what = str(error).partition(": ")
            self.fail((*prefix, field), f"{what}, got {show(raw.get(field))}")
            return None

    def source(self, dotted: str) -> str:
        """Where a resolved value comes from: default, recipe or --set."""
        path = tuple(int(p) if p.isdigit() else p for p in dotted.split("."))
        if any(path[:end] in self.from_set for end in range(1, len(path) + 1)):
            here: Any = self.raw
            for part in path:  # `--set optim={lr: 1}` gives lr; the other keys of optim are still defaults
                if isinstance(here, dict) and part not in here:
                    return "default"
                here = here[part] if isinstance(here, dict) else here
            return "--set"
        return "recipe" if path in self.lines else "default"


def _model_below(model: type[BaseModel], path: list[str | int]) -> type[BaseModel]:
    """The model of a section within a section (`optuna`, `rows.NAME`); itself for an empty path."""
    hint: Any = model
    for part in path:
        kind, inner = typing.get_origin(hint), typing.get_args(hint)
        if kind in (dict, list):
            hint = inner[-1]
        else:
            hint = next(f.annotation for name, f in hint.model_fields.items() if (f.alias or name) == part)
        if typing.get_origin(hint) in (typing.Union, types.UnionType):  # `Part | None`
            hint = typing.get_args(hint)[0]
    return hint


def fields_model(cls: type) -> type[BaseModel]:
    """A strict pydantic model with the fields of a component's dataclass."""
    hints = typing.get_type_hints(cls, include_extras=True)
    fields: dict[str, Any] = {}
    for field in dataclasses.fields(cls):
        if field.default is not dataclasses.MISSING:
            fields[field.name] = (hints[field.name], field.default)
        elif field.default_factory is not dataclasses.MISSING:
            fields[field.name] = (hints[field.name], Field(default_factory=field.default_factory))
        else:
            fields[field.name] = (hints[field.name], ...)
    return create_model(cls.__name__, __config__=STRICT, __doc__=cls.__doc__, **fields)


def keys_of(model: type[BaseModel]) -> list[str]:
    """The keys of a section, as a file writes them."""
    return [field.alias or name for name, field in model.model_fields.items()]
