"""Only the biases train."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class BitFit:
    """BitFit: every bias of the backbone, those of its norms included, and the head (Ben Zaken et al. 2022).

    norms: false leaves the biases of the norms frozen.
    """

    norms: bool = True
    trains_backbone: ClassVar[bool] = True
    saved: ClassVar[str] = "plain"
    no_weight_decay: ClassVar[tuple[str, ...]] = ()

    def prepare(self, vit: torch.nn.Module) -> None:
        """Freeze all that is not a bias."""
        from torch import nn

        from riftcli.models import surgery

        surgery.freeze_backbone(vit)
        for module in vit.modules():
            bias = getattr(module, "bias", None)
            if isinstance(bias, nn.Parameter) and (self.norms or not isinstance(module, nn.LayerNorm)):
                bias.requires_grad_(True)
