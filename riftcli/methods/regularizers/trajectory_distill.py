"""Distillation from the average of the weights that training has gone through."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from riftcli.protocols import RegularizerContext


@dataclass(frozen=True)
class TrajectoryDistill:
    """strength * (rows * CRD + features * FD + cross * cross-KD + contrast * ICL) towards a teacher that is an average of the
    student's own weights along its path (TRACER, 2026); with average: ema and rows alone, CaRot's self-distillation (Oh et al.
    2024, without its orthogonality term).

    strength: weight of the whole; 0.9 is in the published script, 1 keeps more and learns less.
    average: beta (every step counts, with the density of Beta(beta, beta) at its share of training) | ema (every `every` steps;
      its momentum rises to `momentum` over the first `ramp` of training, from 0.05).
    rows: KL of the rows of the similarity tables, teacher to student, both directions. features: mean squared difference of the
      embeddings. cross: KL of the student against the teacher's other modality. contrast: the contrastive loss of the student
      against the teacher's other modality. Of CaRot: average ema, strength 1, rows 1.5, the others 0.
    on: task (the task's images and texts, as published) | reference (pairs of the recipe's `reference`).
    """

    strength: float = 0.9
    average: Literal["beta", "ema"] = "beta"
    beta: float = 0.5
    every: int = 500
    momentum: float = 0.9
    ramp: float = 0.2
    rows: float = 1.0
    features: float = 2000.0
    cross: float = 1.0
    contrast: float = 1.0
    on: Literal["task", "reference"] = "task"
    texts: ClassVar[str] = "sample"
    trains_scale: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.strength < 0:
            raise ValueError("strength: must be 0 or more")
        if self.beta <= 0:
            raise ValueError("beta: must be above 0")
        if self.every < 1:
            raise ValueError("every: must be 1 or more")
        if not 0 <= self.momentum < 1 or not 0 <= self.ramp <= 1:
            raise ValueError("momentum: must be in [0, 1), and ramp in [0, 1]")
        if min(self.rows, self.features, self.cross, self.contrast) < 0:
            raise ValueError("rows: weights must be 0 or more")

    def build(self, context: RegularizerContext) -> Any:
        """None when strength is 0."""
        if self.strength == 0:
            return None
        from riftcli.methods.regularizers.trajectory_penalty import TrajectoryPenalty

        return TrajectoryPenalty(self)
