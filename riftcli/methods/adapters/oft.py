"""Orthogonal finetuning: the input of a linear layer is rotated, its weight stays."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from riftcli.errors import UsageError
from riftcli.models.targets import SLICES, check_targets

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Oft:
    """OFT: y = W R x + b with R a block-diagonal rotation by the exact Cayley transform (Qiu et al. 2023; PEFT's input side).

    block_size: of the rotations, must divide the width of the layers. targets: from qkv, proj, fc1, fc2.
    coft: keep each block within `eps` of the identity (Frobenius norm of R - I).
    """

    block_size: int = 32
    targets: list[str] = field(default_factory=lambda: ["qkv"])
    coft: bool = False
    eps: float = 1e-3
    trains_backbone: ClassVar[bool] = True
    saved: ClassVar[str] = "merged"
    no_weight_decay: ClassVar[tuple[str, ...]] = ("*.oft_*",)

    def __post_init__(self) -> None:
        if self.block_size < 2:
            raise ValueError("block_size: must be 2 or more")
        if self.eps <= 0:
            raise ValueError("eps: must be above 0")
        check_targets(self.targets)
        if set(self.targets) & set(SLICES):
            raise ValueError("targets: q, k and v share one input, so one rotation: use qkv")

    def prepare(self, vit: torch.nn.Module) -> None:
        """Freeze the backbone and wrap the target layers."""
        from riftcli.models import surgery
        from riftcli.models.layers.rotated import OftLinear

        surgery.freeze_backbone(vit)
        for parent, name, layer, _ in surgery.target_layers(vit, self.targets, "oft"):
            if layer.in_features % self.block_size:
                raise UsageError(f"adapter.block_size {self.block_size} does not divide the {layer.in_features} inputs of {name}")
            setattr(parent, name, OftLinear(layer, self.block_size, self.eps if self.coft else None))
