"""A small bottleneck beside the MLP of every block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from riftcli.errors import UsageError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class AdaptFormer:
    """AdaptFormer: x + MLP(norm2(x)) + scale * up(relu(down(x))) with everything else frozen (Chen et al. 2022).

    width: of the bottleneck; scale: of its output; dropout: between down and up, while training.
    """

    width: int = 64
    scale: float = 0.1
    dropout: float = 0.1
    trains_backbone: ClassVar[bool] = True
    saved: ClassVar[str] = "unmerged"
    no_weight_decay: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        if self.width < 1:
            raise ValueError("width: must be 1 or more")
        if not 0 <= self.dropout < 1:
            raise ValueError("dropout: must be in [0, 1)")

    def prepare(self, vit: torch.nn.Module) -> None:
        """Freeze the backbone and put a bottleneck beside every MLP."""
        from riftcli.models import surgery
        from riftcli.models.layers.bottleneck import Bottleneck

        found = surgery.blocks(vit, "adaptformer")
        if any(type(block).__name__.startswith("ResPost") for block in found):
            raise UsageError(f"adapter.name adaptformer: {surgery.model_name(vit)} has norms behind its MLPs, not before")
        surgery.freeze_backbone(vit)
        for block in found:
            Bottleneck.attach(block, self.width, self.scale, self.dropout)
