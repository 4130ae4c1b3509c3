"""RSC: a direct penalty on the dissimilarity (1 - CKA) to the pretrained features of the same samples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from riftcli.protocols import RegularizerContext

if TYPE_CHECKING:
    import torch

    from riftcli.methods.regularizers.paired_penalty import PairedPenalty


@dataclass(frozen=True)
class Rsc:
    """Representation Similarity Constraint: strength * (1 - CKA(F_0, F)) over the global batch (RIFT paper Eq. 6-7).

    strength: weight of the term (lambda_RSC); 0 is exactly plain finetuning.
    hcs_lambda: the RepSim paper's coefficient instead, lambda * task + (1 - lambda) * (1 - CKA): it is converted to
      strength = (1 - lambda) / lambda (0.8 -> 0.25, 0.2 -> 4); the overall scale lambda of that loss is dropped, which
      only matters to optimizers that are not scale-free and to gradient clipping.
    estimator: biased (the papers') | debiased (recommended when the batch is small against the feature dimension).
    on: task (the task's batches) | reference (the images of the recipe's `reference`).
    """

    strength: float = 1.0
    hcs_lambda: float | None = None
    estimator: Literal["biased", "debiased"] = "biased"
    on: Literal["task", "reference"] = "task"

    def __post_init__(self) -> None:
        if self.strength < 0:
            raise ValueError("strength: must be 0 or more")
        if self.hcs_lambda is not None and not 0 < self.hcs_lambda <= 1:
            raise ValueError("hcs_lambda: must be in (0, 1]")
        if self.hcs_lambda is not None and self.strength != 1.0:
            raise ValueError("hcs_lambda: give either strength or hcs_lambda")

    def check(self, sections: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], str]]:
        """(key, what is wrong) of a recipe with these sections."""
        if sections["strength"] is not None and self.hcs_lambda is not None:
            yield ("regularizer", "hcs_lambda"), "is a strength, and regularizer.strength has a rule: give one of them"
        own = getattr(sections["reference"], "batch_size", None) if self.on == "reference" else None
        size = own or getattr(sections["train"], "batch_size", None)
        if size is not None and size < 4 and self.estimator == "debiased":
            yield ("regularizer", "estimator"), f"'debiased' needs at least 4 samples a batch, got {size}"

    @property
    def weight(self) -> float:
        """lambda_RSC, whichever way it was given."""
        return self.strength if self.hcs_lambda is None else (1 - self.hcs_lambda) / self.hcs_lambda

    def build(self, context: RegularizerContext) -> PairedPenalty | None:
        """None when the weight is 0, so that nothing at all is computed."""
        return None if self.weight == 0 else self.penalty()

    def penalty(self) -> PairedPenalty:
        """The bound term."""
        from riftcli.methods.regularizers.paired_penalty import PairedPenalty

        return PairedPenalty(self.weight, self.dissimilarity, debiased_cka=self.estimator == "debiased")

    def dissimilarity(self, features: torch.Tensor, pretrained: torch.Tensor) -> torch.Tensor:
        """1 - CKA; (n, D), (n, D) -> ()."""
        from riftcli.functional.cka import linear_cka

        return 1 - linear_cka(pretrained, features, debiased=self.estimator == "debiased")
