"""YAML without its traps: data only, YAML 1.2 scalars, and the line of every key.

PyYAML alone reads `1e-4` as a string, `no` as False, `012` as 10, and silently keeps the last of two equal keys.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import yaml

Path = tuple[str | int, ...]

MAX_BYTES = 256_000
MAX_DEPTH = 12


@dataclass
class Document:
    """A parsed recipe and where each of its keys stands."""

    data: Any
    lines: dict[Path, int] = field(default_factory=dict)


class YamlError(ValueError):
    """What is wrong, and on which line (1-based)."""

    def __init__(self, line: int, what: str) -> None:
        super().__init__(what)
        self.line, self.what = line, what


class _Loader(yaml.SafeLoader):
    """A loader that resolves no scalar at all: `_scalar` below does."""

    yaml_implicit_resolvers: dict = {}  # noqa: RUF012 - PyYAML's own class attribute


_INT = re.compile(r"[-+]?(0|[1-9][0-9]*)$")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$")
_SPECIAL = re.compile(r"[-+]?\.(inf|nan)$", re.IGNORECASE)


def parse(text: str) -> Document:
    """Parse one document; raise YamlError with the line for anything that is not plain data."""
    if len(text.encode()) > MAX_BYTES:
        raise YamlError(1, f"larger than {MAX_BYTES // 1000} kB: this is not a recipe")
    try:
        _refuse_tricks(text)
        node = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise YamlError(mark.line + 1 if mark else 1, f"not valid YAML: {error.problem}") from error
    except yaml.YAMLError as error:
        raise YamlError(1, f"not valid YAML: {str(error).splitlines()[0]}") from error
    document = Document(None)
    document.data = _build(node, (), document.lines) if node is not None else None
    return document


def _refuse_tricks(text: str) -> None:
    """Walk the event stream, which is flat, before anything recursive touches it."""
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        line = (event.start_mark.line if event.start_mark else 0) + 1
        tag = getattr(event, "tag", None)
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise YamlError(line, "anchors and aliases are not allowed in a recipe; write the value out")
        if tag and tag != "!":
            raise YamlError(line, f"tag '{tag}' is not allowed in a recipe; it holds plain data only")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_DEPTH:
                raise YamlError(line, f"nested deeper than {MAX_DEPTH} levels")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


def _build(node: Any, path: Path, lines: dict[Path, int]) -> Any:
    lines.setdefault(path, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        mapping: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                raise YamlError(line, "keys must be plain words")
            key = key_node.value
            if key in mapping:
                raise YamlError(line, f"{'.'.join(map(str, (*path, key)))}: given twice; keep one of them")
            lines[(*path, key)] = line
            mapping[key] = _build(value_node, (*path, key), lines)
        return mapping
    if isinstance(node, yaml.SequenceNode):
        return [_build(item, (*path, i), lines) for i, item in enumerate(node.value)]
    if node.style in ("'", '"', "|", ">"):
        return node.value
    return _scalar(node.value, node.start_mark.line + 1, path)


def _scalar(text: str, line: int, path: Path) -> Any:
    if text in ("", "~", "null", "Null", "NULL"):
        return None
    if text in ("true", "True", "TRUE"):
        return True
    if text in ("false", "False", "FALSE"):
        return False
    if _INT.match(text):
        if len(text) > 18:
            raise YamlError(line, f"{'.'.join(map(str, path)) or 'value'}: a number of {len(text)} digits is too large")
        return int(text)
    if re.match(r"[-+]?0[0-9]+$", text):
        where = ".".join(map(str, path)) or "value"
        raise YamlError(line, f"{where}: {text} has a leading zero, which YAML 1.1 reads as octal; write it without")
    if _FLOAT.match(text):
        return float(text)
    if _SPECIAL.match(text):
        return float(text.replace(".", "", 1))
    return text
