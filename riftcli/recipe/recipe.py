"""A whole recipe, checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from riftcli import catalog
from riftcli.recipe.data_sources import DataSection, EvalSet, ReferenceSection
from riftcli.recipe.image_sections import AugmentSection, InputSection
from riftcli.recipe.sections import EvalSection, ModelSection, PromptsSection
from riftcli.recipe.training_sections import LaunchSection, OptimSection, ScheduleSection, TrainSection

TRAJECTORY = ("acc", "cka", "ece")  # what a trajectory follows, beside the retention sets


@dataclass(frozen=True)
class Recipe:
    """Everything one run needs, checked."""

    name: str
    model: ModelSection
    data: DataSection
    objective: Any
    adapter: Any
    regularizer: Any
    strength: Any  # a rule that steers regularizer.strength, or None for a number
    input: InputSection
    augment: AugmentSection
    optim: OptimSection
    schedule: ScheduleSection
    train: TrainSection
    eval: EvalSection
    launch: LaunchSection
    retention: tuple[DataSection, ...]
    reference: ReferenceSection | None
    prompts: PromptsSection | None
    zero_shot: tuple[EvalSet, ...]  # below `eval`: unseen classes, told by their names alone
    shifted: tuple[EvalSet, ...]  # classes of the task, from another distribution
    captions: tuple[EvalSet, ...]  # images with captions
    resolved: dict[str, Any]  # every value, as plain data; writing and reading it gives the same recipe
    sources: dict[str, str]  # dotted key -> "default" | "recipe" | "--set"
    text: str  # the file as it was

    @property
    def method(self) -> dict[str, Any]:
        """What is done, in the words of the catalog."""
        names = {kind: self.component_name(kind) for kind in ("objective", "adapter", "regularizer")}
        strength = getattr(self.regularizer, "weight", getattr(self.regularizer, "strength", None))
        if self.strength is not None:
            wish = self.resolved["regularizer"]["strength"]
            strength = {key: wish[key] for key in [rule_name(wish)]}
        return {**names, "strength": strength, "pretrained": self.model.pretrained}

    @property
    def wording(self) -> PromptsSection:
        """How classes are put into words."""
        return self.prompts or PromptsSection.model_validate({})

    @property
    def reads_texts(self) -> bool:
        """True when training looks at texts: then there is something for a text tower to learn."""
        parts = (self.objective, self.regularizer)
        return self.adapter.trains_backbone and any(getattr(part, "texts", None) for part in parts)

    @property
    def watched(self) -> list[str]:
        """Metrics of the validation split at every evaluation: those of the report, and those of a trajectory."""
        steered = ["cka_debiased"] if self.strength is not None and self.strength.wants == "similarity" else []
        return list(dict.fromkeys([*self.eval.metrics, *(TRAJECTORY if self.eval.trajectory else []), *steered]))

    @property
    def needs_pretrained(self) -> bool:
        """True when the frozen pretrained model is needed for a metric."""
        metrics: list[Any] = [catalog.component("metric", name) for name in self.watched]
        return bool(self.retention or self.zero_shot or self.shifted or self.captions) or any(
            metric.needs_pretrained for metric in metrics
        )

    def component_name(self, kind: str) -> str:
        """The catalog name of the objective, adapter or regularizer."""
        return self.resolved[kind]["name"]


def rule_name(raw: Any) -> str | None:
    """The strength rule that a mapping names by one of its keys ({keep: 0.9}); None where it names none, or several."""
    named = [key for key in raw if key in catalog.CATALOG["strength"]] if isinstance(raw, dict) else []
    return named[0] if len(named) == 1 else None
