"""The last blocks train."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from riftcli.errors import UsageError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Partial:
    """Partial-k: the last `blocks` blocks, the final norm and the head train (VPT paper's baseline; RepSim's Partial-3).

    Autograd keeps nothing for the frozen blocks before them: no input and no weight there asks for a gradient.
    """

    blocks: int = 3
    trains_backbone: ClassVar[bool] = True
    saved: ClassVar[str] = "plain"
    no_weight_decay: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        if self.blocks < 1:
            raise ValueError("blocks: must be 1 or more (adapter linear trains none)")

    def prepare(self, vit: torch.nn.Module) -> None:
        """Freeze everything before the last blocks."""
        from riftcli.models import surgery

        found = surgery.blocks(vit, "partial")
        if self.blocks > len(found):
            raise UsageError(f"adapter.blocks {self.blocks}: the model has only {len(found)} blocks")
        surgery.freeze_backbone(vit)
        model: Any = vit
        ends = (getattr(model, name, None) for name in ("norm", "fc_norm", "projection"))
        for module in (*found[-self.blocks :], *ends):
            if module is not None:
                module.requires_grad_(True)
