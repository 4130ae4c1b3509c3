"""Finetune like you pretrain: images against texts made of their classes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from riftcli.protocols import Pairs, Task

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Contrastive:
    """FLYP (Goyal et al. 2023): symmetric cross-entropy of images and the texts of their classes, over the whole global batch.

    The text of an image is a template of `prompts` with the name of its class, drawn anew in every epoch. Both towers train, as
    `adapter.towers` says, and predictions come from the zero-shot head of the text tower as it then is.

    same_class: what images of one class are to each other: negative (each other's opposite, as published) | ignore (left out) |
    positive (they share the target).
    clamp_scale: keep exp(logit_scale) at 100 or less, as CLIP's training does; FLYP's code lets it grow.
    """

    same_class: Literal["negative", "ignore", "positive"] = "negative"
    clamp_scale: bool = True
    task: ClassVar[Task] = "multiclass"
    texts: ClassVar[str] = "sample"
    trains_scale: ClassVar[bool] = True

    def check(self, sections: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], str]]:
        """(key, what is wrong) of a recipe with these sections."""
        adapter = sections["adapter"]
        if adapter is not None and not adapter.trains_backbone:
            yield (
                ("adapter", "name"),
                "trains the head alone, and here the head is made of texts; use full",
            )

    def build(self, targets: torch.Tensor, num_classes: int) -> _Contrastive:
        """Nothing is counted."""
        return _Contrastive(self)


class _Contrastive:
    class_weights = None

    def __init__(self, config: Contrastive) -> None:
        self.config = config

    def pair_loss(self, pairs: Pairs, targets: torch.Tensor) -> torch.Tensor:
        from riftcli.functional.contrastive import contrastive_loss

        return contrastive_loss(*pairs, targets, self.config.same_class)

    def weights(self, targets: torch.Tensor) -> torch.Tensor:
        import torch

        return torch.ones(targets.shape[0], device=targets.device)
