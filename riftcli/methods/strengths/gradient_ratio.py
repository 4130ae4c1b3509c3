"""A strength chosen by the sizes of the two gradients at the start."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal


@dataclass(frozen=True)
class GradientRatio:
    """The strength at which the term's gradient for the features is `ratio` times the task's, over the first steps.

    ratio: of the two norms. steps: how many are averaged, at a strength of 1; then the strength is fixed:
    ratio * sum of task norms / sum of term norms. The very first step alone would not do: a term that compares with the
    pretrained features of the same samples has no gradient at all there.
    """

    ratio: float
    steps: int = 10
    wants: ClassVar[Literal["gradients"]] = "gradients"

    def __post_init__(self) -> None:
        if self.ratio <= 0:
            raise ValueError("ratio: must be above 0")
        if self.steps < 1:
            raise ValueError("steps: must be 1 or more")

    def check(self, sections: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], str]]:
        """(key, what is wrong) of a recipe with these sections."""
        if sections["adapter"] and not sections["adapter"].trains_backbone:
            yield ("regularizer", "strength"), "ratio has nothing to measure: this adapter freezes the backbone"

    def begin(self, total_steps: int) -> RatioControl:
        """Measuring starts."""
        return RatioControl(self, min(self.steps, total_steps))


class RatioControl:
    """The rule at work: sums of both norms, and the strength once they are known."""

    def __init__(self, rule: GradientRatio, steps: int) -> None:
        self.rule, self.steps = rule, steps
        self.strength, self.seen, self.task, self.term = 1.0, 0, 0.0, 0.0

    def due(self, step: int) -> bool:
        """The first steps only."""
        return step <= self.steps

    def update(self, progress: float, rate: float, measured: tuple[float, ...]) -> dict[str, float]:
        """Add a step's norms; the last one fixes the strength."""
        task, term = measured
        self.seen, self.task, self.term = self.seen + 1, self.task + task, self.term + term
        if self.seen == self.steps and self.term > 0:
            self.strength = self.rule.ratio * self.task / self.term
        return {"strength": self.strength, "task_gradient": task, "penalty_gradient": term}

    def outcome(self, similarity: float | None) -> dict[str, Any]:
        """What was chosen."""
        note = None
        if self.term == 0:
            note = f"strength ratio {self.rule.ratio:g}: the term had no gradient in the first steps; the strength stayed at 1"
        return {"rule": {"ratio": self.rule.ratio}, "strength": self.strength, "note": note}

    def state_dict(self) -> dict[str, Any]:
        """The sums and the strength."""
        return {"strength": self.strength, "seen": self.seen, "task": self.task, "term": self.term}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of state_dict."""
        self.strength, self.seen, self.task, self.term = (state[key] for key in ("strength", "seen", "task", "term"))
