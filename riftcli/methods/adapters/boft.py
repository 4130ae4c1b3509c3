"""Orthogonal finetuning with butterfly factors: every input can reach every other one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from riftcli.errors import UsageError
from riftcli.models.targets import SLICES, check_targets

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Boft:
    """BOFT: W R with R a product of `factors` butterfly-permuted block-diagonal rotations, and a scale per output
    (Liu et al. 2024).

    block_size: of the rotations; an even number when factors > 1, and block_size * 2^(factors - 1) must divide the width of the
    layers. targets: from qkv, proj, fc1, fc2.
    """

    block_size: int = 4
    factors: int = 1
    targets: list[str] = field(default_factory=lambda: ["qkv"])
    trains_backbone: ClassVar[bool] = True
    saved: ClassVar[str] = "merged"
    no_weight_decay: ClassVar[tuple[str, ...]] = ("*.boft_*",)

    def __post_init__(self) -> None:
        if self.block_size < 2 or self.factors < 1:
            raise ValueError("block_size: must be 2 or more, and factors 1 or more")
        if self.factors > 1 and self.block_size % 2:
            raise ValueError("block_size: must be even when there is more than one factor")
        check_targets(self.targets)
        if set(self.targets) & set(SLICES):
            raise ValueError("targets: q, k and v share one input, so one rotation: use qkv")

    def prepare(self, vit: torch.nn.Module) -> None:
        """Freeze the backbone and wrap the target layers."""
        from riftcli.models import surgery
        from riftcli.models.layers.butterfly import BoftLinear

        surgery.freeze_backbone(vit)
        span = self.block_size * 2 ** (self.factors - 1)
        for parent, name, layer, _ in surgery.target_layers(vit, self.targets, "boft"):
            if layer.in_features % span:
                raise UsageError(
                    f"adapter.block_size {self.block_size} with {self.factors} factors: {span} does not divide the "
                    f"{layer.in_features} inputs of {name}"
                )
            setattr(parent, name, BoftLinear(layer, self.block_size, self.factors))
