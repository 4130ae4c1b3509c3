"""Full finetuning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Full:
    """Every parameter trains.

    towers: of a model with two, both | image | text; null is both where something reads texts, else the image tower.
    """

    towers: Literal["both", "image", "text"] | None = None
    trains_backbone: ClassVar[bool] = True
    saved: ClassVar[str] = "plain"
    no_weight_decay: ClassVar[tuple[str, ...]] = ()

    def prepare(self, vit: torch.nn.Module) -> None:
        """Unfreeze everything."""
        vit.requires_grad_(True)
