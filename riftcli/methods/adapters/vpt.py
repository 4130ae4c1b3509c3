"""Learned tokens beside the image's."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from riftcli.errors import UsageError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Vpt:
    """Visual prompt tuning: `tokens` learned tokens after the prefix tokens of a frozen ViT (Jia et al. 2022).

    depth: shallow (inserted before the first block and carried through) | deep (fresh ones at every block).
    dropout: on the prompts, while training. Unlike the other adapters, step 0 is not the pretrained model: attention has
    more keys. Prompts carry no position and are never pooled.
    """

    tokens: int = 10
    depth: Literal["shallow", "deep"] = "deep"
    dropout: float = 0.0
    trains_backbone: ClassVar[bool] = True
    saved: ClassVar[str] = "unmerged"
    no_weight_decay: ClassVar[tuple[str, ...]] = ("*prompt.tokens",)

    def __post_init__(self) -> None:
        if self.tokens < 1:
            raise ValueError("tokens: must be 1 or more")
        if not 0 <= self.dropout < 1:
            raise ValueError("dropout: must be in [0, 1)")

    def check(self, sections: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], str]]:
        """(key, what is wrong) of a recipe with these sections."""
        train = sections["train"]
        if train and train.grad_checkpointing and self.depth == "shallow":
            yield ("train", "grad_checkpointing"), "does not go with shallow prompts (block to block); use deep ones"

    def prepare(self, vit: torch.nn.Module) -> None:
        """Freeze the backbone and hang prompts on its blocks; raise UsageError where positions live in the attention."""
        from riftcli.models import surgery
        from riftcli.models.layers.prompt import Carried, Prompt

        found = surgery.blocks(vit, "vpt")
        model: Any = vit
        inside = ("rel_pos", "rope", "relative_position_bias_table")
        positions = any(getattr(block.attn, name, None) is not None for block in found for name in inside)
        if positions or any(getattr(model, name, None) is not None for name in ("rope", "rel_pos_bias")):
            name = surgery.model_name(vit)
            raise UsageError(f"adapter.name vpt: {name} has positions inside its attention, and prompts have none")
        surgery.freeze_backbone(vit)
        patch = model.patch_embed.proj.weight
        bound = math.sqrt(6 / (3 * patch.shape[-1] * patch.shape[-2] + model.embed_dim))
        carried = Carried()
        for index, block in enumerate(found):
            fresh = index == 0 or self.depth == "deep"
            count = self.tokens if fresh else 0
            prompt = Prompt(count, model.embed_dim, model.num_prefix_tokens, bound, self.dropout, carried, patch.device)
            prompt.hands_on = self.depth == "shallow" and index < len(found) - 1
            prompt.attach(block)
