"""Only the norms train."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class NormTune:
    """Weights and biases of every layer norm, and the head."""

    trains_backbone: ClassVar[bool] = True
    saved: ClassVar[str] = "plain"
    no_weight_decay: ClassVar[tuple[str, ...]] = ()

    def prepare(self, vit: torch.nn.Module) -> None:
        """Freeze all that is not a norm; raise UsageError where there are none."""
        from torch import nn

        from riftcli.errors import UsageError
        from riftcli.models import surgery

        surgery.freeze_backbone(vit)
        norms = [module for module in vit.modules() if isinstance(module, nn.LayerNorm)]
        if not norms:
            raise UsageError("adapter.name norm_tune: the model has no layer norms")
        for norm in norms:
            norm.requires_grad_(True)
