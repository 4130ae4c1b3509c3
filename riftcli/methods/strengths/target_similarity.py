"""A strength that is steered so that the run ends at a wanted similarity to the pretrained model."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

STEEPEST = math.log(4.0)  # one update changes the strength by a factor of 4 at most


@dataclass(frozen=True)
class TargetSimilarity:
    """Steers the strength so that debiased CKA to the pretrained model, on validation images, ends at `keep`.

    keep: the wanted CKA. tolerance: how near counts as reached; only weights that keep at least `keep` - tolerance are chosen
    as the best. every_steps: steps between two measurements; null is a fortieth of the run. samples: validation images that
    are measured each time. start: the first strength. least, most: its limits; beyond 10 the term's gradient drowns the task's
    and, with Adam and clipping, only adds noise: more strength then keeps less (docs/results.md).

    The rule: the wanted distance from 1 grows in proportion to the learning rate spent, until `settle` of it is; it is then
    (1 - keep) * (1 + lift * r), r the present rate relative to the peak, and so 1 - keep at the end: what steps of size r scatter
    comes back as the rate falls (in the middle of runs with a regularizer that holds the distance was 1.1 to 1.65 times that at
    the end: docs/results.md). The error e = (wanted - measured) / (1 - keep) moves the logarithm of the strength
    by gain * (change of e) + gain_sum * e * (steps since, as a share of all), a proportional-integral controller. Similarity
    answers in proportion to the learning rate, so a sum over steps presses the harder the less it answers. At a limit nothing is
    summed up.
    """

    keep: float
    tolerance: float = 0.02
    every_steps: int | None = None
    samples: int = 512
    start: float = 1.0
    least: float = 0.001
    most: float = 10.0
    settle: float = 0.3
    lift: float = 0.5
    gain: float = 2.0
    gain_sum: float = 40.0
    wants: ClassVar[Literal["similarity"]] = "similarity"

    def __post_init__(self) -> None:
        if not 0 < self.keep < 1:
            raise ValueError("keep: must be between 0 and 1")
        for name in ("tolerance", "samples", "start", "gain", "gain_sum"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}: must be above 0")
        if self.every_steps is not None and self.every_steps < 1:
            raise ValueError("every_steps: must be 1 or more")
        if self.samples < 8:
            raise ValueError("samples: must be 8 or more")
        if not 0 < self.least <= self.start:
            raise ValueError("least: must be above 0 and at most start")
        if self.most < self.start:
            raise ValueError("most: must be at least start")
        if self.lift < 0:
            raise ValueError("lift: must be 0 or more")
        if not 0 < self.settle <= 1:
            raise ValueError("settle: must be above 0 and at most 1")

    def check(self, sections: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], str]]:
        """(key, what is wrong) of a recipe with these sections."""
        if sections["data"] and sections["data"].val is None:
            yield ("regularizer", "strength"), "keep is measured on validation images: set data.val"
        if sections["adapter"] and not sections["adapter"].trains_backbone:
            yield ("regularizer", "strength"), "keep has nothing to steer: this adapter freezes the backbone, so its CKA stays 1"

    def begin(self, total_steps: int) -> SimilarityControl:
        """The run starts at CKA 1."""
        every = self.every_steps or max(1, total_steps // 40)
        return SimilarityControl(self, every, every / total_steps)


class SimilarityControl:
    """The rule at work."""

    def __init__(self, rule: TargetSimilarity, every_steps: int, share: float) -> None:
        self.rule, self.every_steps, self.share = rule, every_steps, share
        self.strength, self.error = rule.start, 0.0

    def due(self, step: int) -> bool:
        """Every few steps."""
        return step % self.every_steps == 0

    def wanted(self, progress: float, rate: float) -> float:
        """CKA on the way: 1 at the start, `keep` at the end."""
        return 1 - (1 - self.rule.keep) * min(1.0, progress / self.rule.settle) * (1 + self.rule.lift * rate)

    def update(self, progress: float, rate: float, measured: tuple[float, ...]) -> dict[str, float]:
        """One step of the controller. progress: the learning rate spent, as a share of the whole; rate: its present value."""
        rule, similarity = self.rule, measured[0]
        wanted = self.wanted(progress, rate)
        error = (wanted - similarity) / (1 - rule.keep)
        change = rule.gain * (error - self.error) + rule.gain_sum * error * self.share
        change = min(STEEPEST, max(-STEEPEST, change))
        self.strength = min(rule.most, max(rule.least, self.strength * math.exp(change)))
        self.error = error
        return {"strength": self.strength, "cka_debiased": similarity, "wanted": wanted}

    def outcome(self, similarity: float | None) -> dict[str, Any]:
        """Whether the wish was met, and if not, what stood in the way."""
        rule = self.rule
        reached = similarity is not None and abs(similarity - rule.keep) <= rule.tolerance
        report = {"rule": {"keep": rule.keep}, "tolerance": rule.tolerance, "strength": self.strength}
        note = None if reached else f"strength keep {rule.keep:g}: ended at a CKA of {_shown(similarity)}{self._why(similarity)}"
        return {**report, "cka_debiased": similarity, "reached": reached, "note": note}

    def _why(self, similarity: float | None) -> str:
        if similarity is None:
            return ": the features are constant"
        if similarity > self.rule.keep:
            least = self.strength <= 1.01 * self.rule.least
            alone = " even with next to no regularizer" if least else ""
            return f", more than wished{alone}: a higher optim.lr or more epochs would use the freedom"
        if self.strength >= 0.99 * self.rule.most:
            return f" with the strength at its limit {self.rule.most:g}: this regularizer cannot keep more here; lower optim.lr"
        return f" at strength {self.strength:.3g}: too few steps to settle; lower optim.lr, or more epochs"

    def state_dict(self) -> dict[str, Any]:
        """Where the controller stands."""
        return {"strength": self.strength, "error": self.error}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of state_dict."""
        self.strength, self.error = state["strength"], state["error"]


def _shown(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3f}"
