"""Linear probing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Linear:
    """Only the head trains; the backbone stays bitwise as it was, in eval mode.

    With augmentation off the features are encoded once and the epochs run on them.
    """

    trains_backbone: ClassVar[bool] = False
    saved: ClassVar[str] = "plain"
    no_weight_decay: ClassVar[tuple[str, ...]] = ()

    def prepare(self, vit: torch.nn.Module) -> None:
        """Freeze all but the classifier."""
        from riftcli.models import surgery

        surgery.freeze_backbone(vit)
