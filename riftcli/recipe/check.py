"""From a file's plain data to a Recipe: every section, component and data source checked, then the rules between them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from riftcli import catalog
from riftcli.errors import did_you_mean
from riftcli.recipe.checker import Checker, keys_of
from riftcli.recipe.data_sources import DataSection, EvalSet, ReferenceSection, SplitRules, SplitSpec
from riftcli.recipe.messages import show
from riftcli.recipe.overrides import Key
from riftcli.recipe.recipe import Recipe, rule_name
from riftcli.recipe.resolved import flatten, resolved_values
from riftcli.recipe.rules import broken_rules
from riftcli.recipe.sections import (
    COMPONENTS,
    EVAL_SETS,
    REFERENCE_KEYS,
    RULES,
    SECTIONS,
    SET_KEYS,
    SPLIT_KEYS,
    TOP_LEVEL,
    PromptsSection,
    SplitSection,
)


def check_recipe(checker: Checker, text: str) -> Recipe:
    """Check everything, then either raise all errors or return the Recipe."""
    for key in checker.raw:
        if key not in TOP_LEVEL:
            checker.fail((key,), f"unknown key{did_you_mean(str(key), TOP_LEVEL)}", TOP_LEVEL)
    parts: dict[str, Any] = {}
    for key, model in SECTIONS.items():
        raw = checker.raw.get(key)
        if key == "eval" and isinstance(raw, dict):
            parts |= {name: _eval_sets(checker, name, raw.get(name)) for name in EVAL_SETS}
            raw = {k: v for k, v in raw.items() if k not in EVAL_SETS}
        parts[key] = checker.section((key,), model, raw)
    parts = dict.fromkeys(EVAL_SETS, ()) | parts
    prompts = checker.raw.get("prompts")
    parts["prompts"] = None if prompts is None else checker.section(("prompts",), PromptsSection, prompts)
    for kind, default in COMPONENTS.items():
        raw = checker.raw.get(kind)
        raw = {"name": default} if raw is None else raw
        if kind == "regularizer":
            parts[kind], parts["strength"] = _regularizer(checker, raw)
        else:
            parts[kind] = _component(checker, (kind,), kind, raw)
    parts["data"] = _data(checker, ("data",), checker.raw.get("data"))
    retention = checker.raw.get("retention") or []
    if not isinstance(retention, list):
        checker.fail(("retention",), f"expected a list of data sources, got {show(retention)}")
        retention = []
    parts["retention"] = tuple(_data(checker, ("retention", i), raw) for i, raw in enumerate(retention))
    parts["reference"] = _reference(checker, checker.raw.get("reference"))
    for path, what, *allowed in broken_rules(parts, checker.raw):
        checker.fail(path, what, *allowed)
    checker.raise_errors()
    resolved = resolved_values(parts, checker.raw)
    return Recipe(
        name=Path(checker.filename).stem,
        resolved=resolved,
        sources={path: checker.source(path) for path in flatten(resolved)},
        text=text,
        **parts,
    )


def _component(checker: Checker, prefix: Key, kind: str, raw: Any, key: str = "name") -> Any:
    """A mapping whose `name` picks the class and whose other keys are its fields."""
    if not isinstance(raw, dict):
        checker.fail(prefix, f"expected keys below it, e.g. {{{key}: {catalog.names(kind)[0]}}}, got {show(raw)}")
        return None
    name = raw.get(key, COMPONENTS.get(kind))
    if name is None:
        checker.fail((*prefix, key), "missing or null; name one", catalog.names(kind))
        return None
    if not isinstance(name, str) or name not in catalog.CATALOG[kind]:
        close = did_you_mean(str(name), catalog.names(kind))
        checker.fail((*prefix, key), f"unknown {kind} {show(name)}{close}", catalog.names(kind))
        return None
    return checker.component(prefix, catalog.component(kind, name), {k: v for k, v in raw.items() if k != key})


def _regularizer(checker: Checker, raw: Any) -> tuple[Any, Any]:
    """(the regularizer, the rule that steers its strength or None)."""
    if not isinstance(raw, dict) or not isinstance(raw.get("strength"), dict):
        return _component(checker, ("regularizer",), "regularizer", raw), None
    prefix, wish = ("regularizer", "strength"), raw["strength"]
    plain = {key: value for key, value in raw.items() if key != "strength"}
    built = _component(checker, ("regularizer",), "regularizer", plain)
    if built is not None and not hasattr(built, "strength"):
        checker.fail(prefix, f"{raw.get('name', COMPONENTS['regularizer'])} has no strength to choose")
        return built, None
    name = rule_name(wish)
    if name is None:
        rules = catalog.names("strength")
        checker.fail(prefix, f"expected a number, or one rule, e.g. {{keep: 0.9}}, got {show(wish)}", rules)
        return built, None
    return built, checker.component(prefix, catalog.component("strength", name), wish)


def _data(checker: Checker, prefix: Key, raw: Any) -> DataSection | None:
    """The data source and its splits."""
    if not isinstance(raw, dict):
        checker.fail(prefix, "missing: a recipe needs a data source", catalog.names("data"))
        return None
    source_raw = {k: v for k, v in raw.items() if k not in SPLIT_KEYS or k == "format"}
    source = _component(checker, prefix, "data", source_raw, key="format")
    train = _split(checker, (*prefix, "train"), raw.get("train", "train"))
    source_split = train.name if train else "train"
    val = None if raw.get("val") is None else _split(checker, (*prefix, "val"), raw["val"], source_split)
    test_raw = raw.get("test", "test")
    test = None if test_raw is None else _split(checker, (*prefix, "test"), test_raw, source_split)
    if train and train.held_out:
        what = "fraction" if train.fraction is not None else "folds"
        checker.fail((*prefix, "train", what), "only data.val and data.test can be parts of another split")
    if test and test.folds is not None:
        checker.fail((*prefix, "test", "folds"), "only data.val can be one of several folds; use a fraction")
    for key, spec in (("val", val), ("test", test)):
        if spec and spec.held_out and train and spec.name != train.name:
            checker.fail((*prefix, key, "from"), f"must be the training split '{train.name}', got '{spec.name}'")
    if prefix[0] == "retention" and (test_raw is None or (test and test.held_out)):
        checker.fail((*prefix, "test"), "a set that is only looked at has nothing to cut; name one of its splits")
        test = None
    rules = {key: raw[key] for key in RULES if key in raw}
    for key, value in rules.items():
        if not isinstance(value, bool):
            checker.fail((*prefix, key), f"expected true or false, got {show(value)}")
    if source is None or train is None or (test is None and test_raw is not None):
        return None
    return DataSection(raw["format"], source, train, val, test, SplitRules(**rules))


def _split(checker: Checker, prefix: Key, raw: Any, held_from: str = "train") -> SplitSpec | None:
    """A split's name, or a mapping with a limit or a share."""
    if isinstance(raw, str) and raw:
        return SplitSpec(raw)
    if not isinstance(raw, dict):
        checker.fail(prefix, f"expected the name of a split or keys below it, got {show(raw)}", keys_of(SplitSection))
        return None
    values = checker.section(prefix, SplitSection, raw)
    if values is None:
        return None
    ways = [key for key in ("limit", "fraction", "folds") if getattr(values, key) is not None]
    if len(ways) > 1:
        checker.fail((*prefix, ways[0]), f"give only one of {', '.join(ways)}")
    held_out = values.fraction is not None or values.folds is not None
    if not held_out and values.group is not None:
        checker.fail((*prefix, "group"), "only splits made by a fraction or folds have groups")
    if values.folds is None and values.fold:
        checker.fail((*prefix, "fold"), "needs folds, the number of parts")
    elif values.folds is not None and values.fold >= values.folds:
        checker.fail((*prefix, "fold"), f"must be from 0 to {values.folds - 1}, got {values.fold}")
    name = values.from_ or (held_from if held_out else str(prefix[-1]))
    return SplitSpec(name, values.limit, values.fraction, values.folds, values.fold, values.group, values.seed)


def _reference(checker: Checker, raw: Any) -> ReferenceSection | None:
    """The second set of images."""
    if raw is None:
        return None
    if not isinstance(raw, dict):
        checker.fail(("reference",), f"expected a data source, got {show(raw)}", catalog.names("data"))
        return None
    fields = {k: v for k, v in raw.items() if k not in REFERENCE_KEYS or k == "format"}
    source = _component(checker, ("reference",), "data", fields, key="format")
    named = raw.get("split", "train")
    if isinstance(named, dict) and named.get("from") is None:
        named = {**named, "from": "train"}
    split, size = _split(checker, ("reference", "split"), named), raw.get("batch_size")
    if split and split.held_out:
        checker.fail(("reference", "split"), "only data.val can be a part of another split")
    if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 2):
        checker.fail(("reference", "batch_size"), f"expected a whole number of 2 or more, or null, got {show(size)}")
        return None
    return None if source is None or split is None else ReferenceSection(raw["format"], source, split, size)


def _eval_sets(checker: Checker, key: str, raw: Any) -> tuple[EvalSet, ...]:
    """The sets below eval.zero_shot, eval.shifted or eval.captions."""
    if raw is None:
        return ()
    if not isinstance(raw, list):
        checker.fail(("eval", key), f"expected a list of data sources, got {show(raw)}")
        return ()
    found = [_eval_set(checker, ("eval", key, i), one) for i, one in enumerate(raw)]
    return tuple(one for one in found if one is not None)


def _eval_set(checker: Checker, prefix: Key, raw: Any) -> EvalSet | None:
    if not isinstance(raw, dict):
        checker.fail(prefix, f"expected a data source, e.g. {{format: image_folder, root: ...}}, got {show(raw)}")
        return None
    # a source's own `name` (torchvision's) comes before the name for tables
    fields = [field.name for field in dataclasses.fields(_source_class(raw))]
    own = {k: v for k, v in raw.items() if k in fields or k not in SET_KEYS or k == "format"}
    source = _component(checker, prefix, "data", own, key="format")
    given = {k: v for k, v in raw.items() if k in SET_KEYS and k not in fields}
    named = given.get("split", "test")
    if isinstance(named, dict) and named.get("from") is None:
        named = {**named, "from": "test"}
    split = _split(checker, (*prefix, "split"), named)
    prompts = given.get("prompts")
    prompts = None if prompts is None else checker.section((*prefix, "prompts"), PromptsSection, prompts)
    metric, title = given.get("metric", "acc"), given.get("name")
    if metric not in catalog.CATALOG["metric"]:
        close = did_you_mean(str(metric), catalog.names("metric"))
        checker.fail((*prefix, "metric"), f"unknown metric {show(metric)}{close}", catalog.names("metric"))
    if title is not None and not isinstance(title, str):
        checker.fail((*prefix, "name"), f"expected a text, got {show(title)}")
    if source is None or split is None:
        return None
    return EvalSet(raw["format"], source, split, metric, prompts, title)


def _source_class(raw: dict[str, Any]) -> Any:
    known = raw.get("format") if isinstance(raw.get("format"), str) and raw["format"] in catalog.CATALOG["data"] else "digits"
    return catalog.component("data", str(known))
