"""What was found by looking at data: the `data` section of a recipe, and what a person should know about it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

HELD = {"val": 0.1, "test": 0.2}  # shares that are cut where there is no such split


@dataclass(frozen=True)
class Question:
    """What looking cannot decide: which of several columns it is. `key` names it for messages."""

    key: str
    chosen: str
    others: tuple[str, ...]


@dataclass(frozen=True)
class Discovery:
    """fields: of the data source, without defaults; splits: `train`, `val` and `test` as a recipe says them; facts: one line
    each, what matters most first; groups: columns that keep samples together; questions: what was chosen among several.
    """

    format: str
    fields: dict[str, Any]
    splits: dict[str, Any]
    facts: list[str] = field(default_factory=list)
    groups: tuple[str, ...] = ()
    questions: tuple[Question, ...] = ()


def with_cuts(found: Discovery) -> Discovery:
    """The splits that are missing, cut from the training split; whole groups where there is a column to group by."""
    splits, train = dict(found.splits), found.splits["train"]
    whole = {"group": found.groups[0]} if found.groups else {}
    for key, share in HELD.items():
        if key not in splits:
            splits[key] = {"fraction": share, "from": train, **whole}
    return replace(found, splits={key: splits[key] for key in ("train", "val", "test")})
