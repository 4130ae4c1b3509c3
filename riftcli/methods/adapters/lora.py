"""Low-rank updates of linear layers: LoRA, rsLoRA, DoRA."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from riftcli.models.targets import check_targets

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Lora:
    """LoRA: W + (alpha / rank) B A with frozen W (Hu et al. 2022), on the slices of the fused qkv and other linear layers.

    rank: of each pair of factors; alpha: scale, null takes the rank (a factor of 1).
    targets: from q, k, v (a pair each), qkv (one pair for all three), proj, fc1, fc2.
    rslora: scale by alpha / sqrt(rank) (Kalajdzievski 2023). dropout: on the input of the low-rank branch.
    dora: also train the norm of every row of W + BA, and BA only turns it (Liu et al. 2024; the norm is a constant in backward).
    """

    rank: int = 4
    alpha: float | None = None
    targets: list[str] = field(default_factory=lambda: ["q", "v"])
    rslora: bool = False
    dropout: float = 0.0
    dora: bool = False
    trains_backbone: ClassVar[bool] = True
    saved: ClassVar[str] = "merged"
    no_weight_decay: ClassVar[tuple[str, ...]] = ("*.lora_*",)

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError("rank: must be 1 or more")
        if self.alpha is not None and self.alpha <= 0:
            raise ValueError("alpha: must be above 0")
        if not 0 <= self.dropout < 1:
            raise ValueError("dropout: must be in [0, 1)")
        check_targets(self.targets)

    @property
    def scale(self) -> float:
        """The factor of BA."""
        alpha = self.rank if self.alpha is None else self.alpha
        return alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    @property
    def leaves_base(self) -> bool:
        """Whether no weight of the backbone is read but by its own layers: then they can be shared out over ranks."""
        return not self.dora

    def prepare(self, vit: torch.nn.Module) -> None:
        """Freeze the backbone and wrap the target layers."""
        from riftcli.models import surgery
        from riftcli.models.layers.low_rank import LoraLinear

        surgery.freeze_backbone(vit)
        for parent, name, layer, rows in surgery.target_layers(vit, self.targets, "lora"):
            setattr(parent, name, LoraLinear(layer, rows, self.rank, self.scale, self.dropout, self.dora))
