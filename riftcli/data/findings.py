"""What a check of a recipe's data found: findings by level, and the report of them (schema rift.data_check/1)."""

from __future__ import annotations

import statistics
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

from riftcli.data.classes import class_counts
from riftcli.data.inspection import Inspected
from riftcli.data.split import Split
from riftcli.data.splits import fingerprint
from riftcli.recipe.data_sources import DataSection
from riftcli.recipe.image_sections import InputSection
from riftcli.runs.provenance import now

SCHEMA = "rift.data_check/1"
MOST_EXAMPLES = 10_000  # in the report; the terminal shows a few


@dataclass(frozen=True)
class Finding:
    """One thing that was found, and where."""

    level: str  # "error" | "warning"
    check: str  # what was looked at, e.g. "overlap"
    splits: list[str]
    message: str
    count: int = 1
    examples: list[str] = field(default_factory=list)


@dataclass
class Audit:
    """The splits that could be read, what each image is, and what was found."""

    recipe: str  # its name
    data: DataSection
    reading: InputSection  # how files become pixels
    splits: dict[str, Split] = field(default_factory=dict)
    images: dict[str, list[Inspected]] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    data_of: dict[str, str] = field(default_factory=dict)  # split -> name of its data set
    near: list[tuple[str, int, str, int]] = field(default_factory=list)  # (split, position, split, position)

    def add(
        self, level: str, check: str, splits: list[str], message: str, examples: list[str] | None = None, count: int = 1
    ) -> None:
        """Note a finding; a listing problem of several splits (a missing root, say) is one finding."""
        for known in self.findings:
            if check == "labels" and (known.check, known.message) == (check, message):
                known.splits.extend(splits)
                return
        self.findings.append(Finding(level, check, splits, message, count, (examples or [])[:MOST_EXAMPLES]))

    def count(self, level: str) -> int:
        """Number of findings of a level."""
        return sum(finding.level == level for finding in self.findings)

    def report(self) -> dict[str, Any]:
        """Everything as plain data, schema rift.data_check/1."""
        return {
            "schema": SCHEMA,
            "created": now(),
            "recipe": self.recipe,
            "data": self.data.name,
            "errors": self.count("error"),
            "warnings": self.count("warning"),
            "findings": [asdict(finding) for finding in self.findings],
            "splits": {name: self._split(name) for name in self.splits},
        }

    def _split(self, name: str) -> dict[str, Any]:
        split, seen = self.splits[name], [i for i in self.images[name] if i.problem is None]
        sizes = {}
        if seen:
            sizes = {side: _range([getattr(i, side) for i in seen]) for side in ("width", "height")}
        counts = class_counts(split) if split.classes else {}
        return {
            "data": self.data_of[name],
            "n": len(split),
            "task": split.task,
            "class_counts": counts,
            "undefined_classes": [name for name, count in counts.items() if count == 0],
            "unreadable": len(self.images[name]) - len(seen),
            "modes": dict(Counter(i.mode for i in seen)),
            "sizes": sizes,
            "groups": {column: len(set(values)) for column, values in split.groups.items()},
            "fingerprint": fingerprint(split),
        }


def _range(values: list[int]) -> dict[str, float]:
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}
