"""Checks a recipe and collects every error, with its line and the nearest valid name, instead of stopping at the first."""

from __future__ import annotations

import dataclasses
import typing
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, ValidationError, create_model

from riftcli import catalog
from riftcli.errors import UsageError, did_you_mean
from riftcli.recipe import strict_yaml
from riftcli.recipe.messages import show, wording
from riftcli.recipe.overrides import Key, apply_override
from riftcli.recipe.resolved import flatten, resolved_values
from riftcli.recipe.sections import (
    COMPONENTS,
    REFERENCE_KEYS,
    RULES,
    SECTIONS,
    SPLIT_KEYS,
    STRICT,
    TOP_LEVEL,
    DataSection,
    Recipe,
    ReferenceSection,
    SplitRules,
    SplitSection,
    SplitSpec,
    rule_name,
)


class Checker:
    """Collects errors instead of stopping at the first one."""

    def __init__(self, filename: str, document: strict_yaml.Document, what: str = "recipe") -> None:
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
        self.errors.append((bool(given), line, f"{where}{'.'.join(map(str, path))}: {what}{extra}"))

    def raise_errors(self) -> None:
        """Raise UsageError with every error so far, sorted by line."""
        if self.errors:
            raise UsageError("\n".join(text for _, _, text in sorted(self.errors, key=lambda e: e[:2])))

    def section(self, prefix: Key, model: type[BaseModel], raw: Any) -> Any:
        """Validate a mapping against a pydantic model; None after errors."""
        raw = {} if raw is None else raw
        if not isinstance(raw, dict):
            self.fail(prefix, f"expected keys below it, got {show(raw)}", _keys(model))
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
                self.fail(path, f"unknown key{did_you_mean(str(loc[-1]), _keys(model))}", _keys(model))
            elif problem["type"] == "missing":
                self.fail(path, "missing; it has no default")
            else:
                seen.setdefault(path, ([], value))[0].append(wording(problem))
        for path, (wanted, value) in seen.items():
            self.fail(path, f"expected {' or '.join(dict.fromkeys(wanted))}, got {show(value)}")

    def named_component(self, prefix: Key, kind: str, raw: Any, key: str = "name") -> Any:
        """A mapping whose `name` picks the class and whose other keys are its fields."""
        if not isinstance(raw, dict):
            self.fail(prefix, f"expected keys below it, e.g. {{{key}: {catalog.names(kind)[0]}}}, got {show(raw)}")
            return None
        name = raw.get(key, COMPONENTS.get(kind))
        if name is None:
            self.fail((*prefix, key), "missing or null; name one", catalog.names(kind))
            return None
        if not isinstance(name, str) or name not in catalog.CATALOG[kind]:
            close = did_you_mean(str(name), catalog.names(kind))
            self.fail((*prefix, key), f"unknown {kind} {show(name)}{close}", catalog.names(kind))
            return None
        return self._built(prefix, catalog.component(kind, name), {k: v for k, v in raw.items() if k != key})

    def _built(self, prefix: Key, cls: Any, raw: dict[str, Any]) -> Any:
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

    def regularizer(self, raw: Any) -> tuple[Any, Any]:
        """(the regularizer, the rule that steers its strength or None)."""
        if not isinstance(raw, dict) or not isinstance(raw.get("strength"), dict):
            return self.named_component(("regularizer",), "regularizer", raw), None
        prefix, wish = ("regularizer", "strength"), raw["strength"]
        plain = {key: value for key, value in raw.items() if key != "strength"}
        built = self.named_component(("regularizer",), "regularizer", plain)
        if built is not None and not hasattr(built, "strength"):
            self.fail(prefix, f"{self._name_of('regularizer')} has no strength to choose")
            return built, None
        name = rule_name(wish)
        if name is None:
            rules = catalog.names("strength")
            self.fail(prefix, f"expected a number, or one rule, e.g. {{keep: 0.9}}, got {show(wish)}", rules)
            return built, None
        return built, self._built(prefix, catalog.component("strength", name), wish)

    def reference(self, raw: Any) -> ReferenceSection | None:
        """The second set of images."""
        if raw is None:
            return None
        if not isinstance(raw, dict):
            self.fail(("reference",), f"expected a data source, got {show(raw)}", catalog.names("data"))
            return None
        fields = {k: v for k, v in raw.items() if k not in REFERENCE_KEYS or k == "format"}
        source = self.named_component(("reference",), "data", fields, key="format")
        named = raw.get("split", "train")
        if isinstance(named, dict) and named.get("from") is None:
            named = {**named, "from": "train"}
        split, size = self.split(("reference", "split"), named), raw.get("batch_size")
        if split and split.held_out:
            self.fail(("reference", "split"), "only data.val can be a part of another split")
        if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 2):
            self.fail(("reference", "batch_size"), f"expected a whole number of 2 or more, or null, got {show(size)}")
            return None
        return None if source is None or split is None else ReferenceSection(raw["format"], source, split, size)

    def data(self, prefix: Key, raw: Any) -> DataSection | None:
        """The data source and its splits."""
        if not isinstance(raw, dict):
            self.fail(prefix, "missing: a recipe needs a data source", catalog.names("data"))
            return None
        source_raw = {k: v for k, v in raw.items() if k not in SPLIT_KEYS or k == "format"}
        source = self.named_component(prefix, "data", source_raw, key="format")
        train = self.split((*prefix, "train"), raw.get("train", "train"))
        source_split = train.name if train else "train"
        val = None if raw.get("val") is None else self.split((*prefix, "val"), raw["val"], source_split)
        test = self.split((*prefix, "test"), raw.get("test", "test"))
        for key, spec in (("train", train), ("test", test)):
            if spec and spec.held_out:
                what = "fraction" if spec.fraction is not None else "folds"
                self.fail((*prefix, key, what), "only data.val can be a part of another split")
        if val and val.held_out and train and val.name != train.name:
            self.fail((*prefix, "val", "from"), f"must be the training split '{train.name}', got '{val.name}'")
        rules = {key: raw[key] for key in RULES if key in raw}
        for key, value in rules.items():
            if not isinstance(value, bool):
                self.fail((*prefix, key), f"expected true or false, got {show(value)}")
        if source is None or train is None or test is None:
            return None
        return DataSection(raw["format"], source, train, val, test, SplitRules(**rules))

    def split(self, prefix: Key, raw: Any, held_from: str = "train") -> SplitSpec | None:
        """A split's name, or a mapping with a limit or a share."""
        if isinstance(raw, str) and raw:
            return SplitSpec(raw)
        if not isinstance(raw, dict):
            self.fail(prefix, f"expected the name of a split or keys below it, got {show(raw)}", _keys(SplitSection))
            return None
        values = self.section(prefix, SplitSection, raw)
        if values is None:
            return None
        ways = [key for key in ("limit", "fraction", "folds") if getattr(values, key) is not None]
        if len(ways) > 1:
            self.fail((*prefix, ways[0]), f"give only one of {', '.join(ways)}")
        held_out = values.fraction is not None or values.folds is not None
        if not held_out and values.group is not None:
            self.fail((*prefix, "group"), "only splits made by a fraction or folds have groups")
        if values.folds is None and values.fold:
            self.fail((*prefix, "fold"), "needs folds, the number of parts")
        elif values.folds is not None and values.fold >= values.folds:
            self.fail((*prefix, "fold"), f"must be from 0 to {values.folds - 1}, got {values.fold}")
        name = values.from_ or (held_from if held_out else str(prefix[-1]))
        return SplitSpec(name, values.limit, values.fraction, values.folds, values.fold, values.group, values.seed)

    # -- the whole

    def recipe(self, text: str) -> Recipe:
        """Check everything, then either raise all errors or return the Recipe."""
        for key in self.raw:
            if key not in TOP_LEVEL:
                self.fail((key,), f"unknown key{did_you_mean(str(key), TOP_LEVEL)}", TOP_LEVEL)
        parts: dict[str, Any] = {k: self.section((k,), m, self.raw.get(k)) for k, m in SECTIONS.items()}
        for kind, default in COMPONENTS.items():
            raw = self.raw.get(kind)
            raw = {"name": default} if raw is None else raw
            if kind == "regularizer":
                parts[kind], parts["strength"] = self.regularizer(raw)
            else:
                parts[kind] = self.named_component((kind,), kind, raw)
        parts["data"] = self.data(("data",), self.raw.get("data"))
        retention = self.raw.get("retention") or []
        if not isinstance(retention, list):
            self.fail(("retention",), f"expected a list of data sources, got {show(retention)}")
            retention = []
        parts["retention"] = tuple(self.data(("retention", i), raw) for i, raw in enumerate(retention))
        parts["reference"] = self.reference(self.raw.get("reference"))
        self._check_together(parts)
        self._check_reference(parts)
        self.raise_errors()
        resolved = resolved_values(parts, self.raw)
        return Recipe(
            name=Path(self.filename).stem,
            resolved=resolved,
            sources={path: self._source(path) for path in flatten(resolved)},
            text=text,
            **parts,
        )

    def _source(self, dotted: str) -> str:
        path = tuple(int(p) if p.isdigit() else p for p in dotted.split("."))
        if any(path[:end] in self.from_set for end in range(1, len(path) + 1)):
            here: Any = self.raw
            for part in path:  # `--set optim={lr: 1}` gives lr; the other keys of optim are still defaults
                if isinstance(here, dict) and part not in here:
                    return "default"
                here = here[part] if isinstance(here, dict) else here
            return "--set"
        return "recipe" if path in self.lines else "default"

    def _name_of(self, kind: str) -> str:
        raw = self.raw.get(kind)
        return str(raw.get("name", COMPONENTS[kind])) if isinstance(raw, dict) else COMPONENTS[kind]

    def _check_together(self, parts: dict[str, Any]) -> None:
        evaluation, train, model = parts["eval"], parts["train"], parts["model"]
        if evaluation:
            for i, metric in enumerate(evaluation.metrics):
                if metric not in catalog.CATALOG["metric"]:
                    close = did_you_mean(metric, catalog.names("metric"))
                    self.fail(("eval", "metrics", i), f"unknown metric '{metric}'{close}", catalog.names("metric"))
            if evaluation.best not in evaluation.metrics:
                self.fail(("eval", "best"), f"'{evaluation.best}' must be one of eval.metrics", evaluation.metrics)
        if train and train.micro_batch_size and train.batch_size % train.micro_batch_size:
            self.fail(
                ("train", "micro_batch_size"),
                f"{train.micro_batch_size} does not divide train.batch_size {train.batch_size}",
            )
        reading = parts["input"]
        if reading and reading.cache_short_side and not reading.cache:
            self.fail(("input", "cache_short_side"), "has no effect without input.cache, the folder to keep images in")
        for kind in [*COMPONENTS, "strength"]:
            check = getattr(parts[kind], "check", None)
            for path, what in check(parts) if check is not None else ():
                self.fail(path, what)
        views, augment = getattr(parts["augment"], "views", None), parts["augment"]
        if views and augment.off:
            self.fail(("augment", "views"), "has no effect without augmentation: every epoch shows the same pixels")
        elif views and train and views > train.epochs:
            self.fail(("augment", "views"), f"{views} views, and train.epochs {train.epochs} shows no image more often than that")
        for key in ("patience", "trajectory"):
            if evaluation and getattr(evaluation, key) and parts["data"] and parts["data"].val is None:
                self.fail(("eval", key), "needs a validation split: set data.val")
        regularizer = self._name_of("regularizer")
        if model and not model.pretrained and regularizer != "none":
            self.fail(
                ("regularizer", "name"),
                f"'{regularizer}' keeps a pretrained representation and model.pretrained is false (from scratch); "
                "use regularizer.name none",
            )

    def _check_reference(self, parts: dict[str, Any]) -> None:
        """The second set of images and the regularizer that looks at it need each other."""
        wanted = _elsewhere(parts["regularizer"])
        if wanted and self.raw.get("reference") is None:
            example = "e.g. {format: image_folder, root: ...}"
            self.fail(("regularizer", "on"), f"'reference' needs the images: name them below `reference:`, {example}")
        if parts["reference"] is not None and parts["regularizer"] is not None and not wanted:
            self.fail(("reference",), "has no effect: only a regularizer with `on: reference` looks at these images")
        size, train = getattr(parts["reference"], "batch_size", None), parts["train"]
        if size and train and train.micro_batch_size and size * train.micro_batch_size % train.batch_size:
            self.fail(("reference", "batch_size"), f"{size} does not divide into the steps of train.micro_batch_size")


def _elsewhere(regularizer: Any) -> bool:
    return getattr(regularizer, "on", "task") == "reference"


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


def _keys(model: type[BaseModel]) -> list[str]:
    return [field.alias or name for name, field in model.model_fields.items()]
