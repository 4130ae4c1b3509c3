"""A scale and a shift after every operation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Ssf:
    """SSF: y = scale * op(x) + shift after every norm, linear layer and the patch embedding of a frozen ViT (Lian et al. 2022).

    init: identity (scale 1, shift 0: step 0 is the pretrained model) | noise (normal around them with std 0.02, the original's).
    """

    init: Literal["identity", "noise"] = "identity"
    trains_backbone: ClassVar[bool] = True
    saved: ClassVar[str] = "merged"
    no_weight_decay: ClassVar[tuple[str, ...]] = ("*.ssf_*",)

    def prepare(self, vit: torch.nn.Module) -> None:
        """Freeze the backbone and wrap its operations."""
        from torch import nn

        from riftcli.models import surgery
        from riftcli.models.layers.scaled import Scaled

        surgery.freeze_backbone(vit)
        model: Any = vit
        places: list[tuple[Any, str]] = [(model.patch_embed, "proj"), (model, "norm"), (model, "fc_norm"), (model, "norm_pre")]
        for block in surgery.blocks(vit, "ssf"):
            surgery.check_qkv_is_called(block.attn, vit, "ssf")
            places += [(block, "norm1"), (block.attn, "qkv"), (block.attn, "proj"), (block, "norm2")]
            places += [(block.mlp, "fc1"), (block.mlp, "fc2")]
        for parent, name in places:
            layer = getattr(parent, name, None)
            if isinstance(layer, nn.Linear | nn.LayerNorm | nn.Conv2d):
                setattr(parent, name, Scaled(layer, self.init))
