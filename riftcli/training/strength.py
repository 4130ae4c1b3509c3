"""A strength rule in a run: what it asks for is measured, what it chooses is applied and logged."""

from __future__ import annotations

from typing import Any

import torch

from riftcli import dist
from riftcli.data.loader import Batch, eval_loader
from riftcli.data.transforms import EvalTransform
from riftcli.errors import UsageError
from riftcli.evaluation.features import encode
from riftcli.functional.cka import cka
from riftcli.protocols import StrengthControl
from riftcli.training.setup import Setup
from riftcli.training.step import StepResult


class Steering:
    """Between a rule and the regularizer that it steers. Measuring similarity reads the same validation images each time."""

    def __init__(self, setup: Setup) -> None:
        self.rule, self.setup, self.step, self.rate_spent = setup.recipe.strength, setup, 0, 0.0
        self.control: StrengthControl = self.rule.begin(setup.total_steps)
        self.latest: float | None = None  # debiased CKA of the whole validation split, at the last evaluation
        self._watched: list[Batch] | None = None
        self._whole_rate = sum(setup.rate(step) for step in range(setup.total_steps))
        name = setup.recipe.component_name("regularizer")
        if not hasattr(setup.step.regularizer, "strength"):
            raise UsageError(f"regularizer.strength: a rule, and there is nothing to steer: {name} is not at work in this run")
        if self.rule.wants == "gradients" and setup.step.penalty is None:
            raise UsageError(f"regularizer.strength: ratio compares gradients for the features, and {name} acts on the weights")
        self._apply()

    def _apply(self) -> None:
        self.setup.step.regularizer.strength = self.control.strength  # type: ignore[union-attr]
        self.setup.step.measure_gradients = self.rule.wants == "gradients" and self.control.due(self.step + 1)

    def after_step(self, step: int, rate: float, result: StepResult) -> dict[str, Any] | None:
        """After the optimizer has moved at this share of the peak rate; returns a row for metrics.jsonl where something was
        measured. Collective.
        """
        self.step, self.rate_spent = step, self.rate_spent + rate
        if not self.control.due(step):
            return None
        measured = result.gradient_norms if self.rule.wants == "gradients" else (self.similarity(),)
        assert measured is not None
        row = self.control.update(self.rate_spent / self._whole_rate, rate, measured)
        self._apply()
        return row

    def similarity(self) -> float:
        """Debiased CKA of the watched validation images to their pretrained features; undefined counts as 0."""
        setup = self.setup
        val = setup.data.splits.val
        assert val is not None
        count = min(self.rule.samples, len(val))
        order = torch.randperm(len(val), generator=torch.Generator().manual_seed(setup.recipe.train.seed))
        chosen = order[:count].sort().values
        preprocessing = setup.network.preprocessing
        if self._watched is None:  # decoded once: uint8, on the CPU
            some = val.take(chosen.tolist())
            size, ranks = setup.recipe.eval.batch_size, dist.world_size()
            self._watched = list(eval_loader(some, EvalTransform(preprocessing), size, 0, dist.rank(), ranks))
        table = encode(setup.network.classifier, iter(self._watched), count, preprocessing, setup.device)
        setup.network.classifier.train()
        value = cka(setup.pretrained.splits["val"][chosen], table.features, debiased=True)
        return dist.broadcast_object(0.0 if value is None else value)

    def outcome(self, kept: float | None) -> dict[str, Any]:
        """For the report. kept: debiased CKA on validation of the weights that were chosen."""
        report = self.control.outcome(self.latest)
        return report if self.rule.wants == "gradients" else {**report, "cka_debiased_of_kept_weights": kept}

    def state_dict(self) -> dict[str, Any]:
        """Plain values: all that resume needs."""
        return {"rate_spent": self.rate_spent, "latest": self.latest, "control": self.control.state_dict()}

    def resume(self, step: int, state: dict[str, Any]) -> None:
        """Go on where a saved run stood."""
        self.step, self.rate_spent, self.latest = step, state["rate_spent"], state["latest"]
        self.control.load_state_dict(state["control"])
        self._apply()
