"""One forward that returns features and logits, around a timm model; and its frozen copy."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import torch
from torch import nn

from riftcli.errors import UsageError
from riftcli.models.image_text import text_tower
from riftcli.protocols import Output


class Classifier(nn.Module):
    """A timm ViT whose one forward returns features and logits; what DDP wraps.

    depths: also the features of so many equally spaced depths, the last of them before the head.
    """

    def __init__(self, vit: nn.Module, frozen_backbone: bool = False, depths: int = 0) -> None:
        super().__init__()
        self.vit: Any = vit
        self.frozen_backbone = frozen_backbone
        self.depths = depths

    def forward(self, images: torch.Tensor, tokens: torch.Tensor | None = None) -> Output:
        """(n, 3, H, W) -> features (n, D) before the head, logits (n, C). tokens (t, length): embedded by the text tower too."""
        texts = scale = layers = None
        if tokens is not None:
            texts, scale = self.vit.text_tower(tokens), self.vit.text_tower.scale
        if self.depths:
            found = depth_features(self.vit, images, self.depths)
            features, layers = found[-1], torch.cat(found, 1)
        else:
            features = self.vit.forward_head(self.vit.forward_features(images), pre_logits=True)
        return Output(features, self.vit.get_classifier()(features), layers, texts, scale)

    def train(self, mode: bool = True) -> Classifier:
        """Dropout and drop path stay off in a backbone that does not train: its head would learn on noisy features.

        In a text tower they are always off: contrastive pretraining has none, and its embeddings are compared with themselves.
        """
        super().train(mode)
        if mode and self.frozen_backbone:
            self.vit.eval()
        tower = text_tower(self.vit)
        if tower is not None:
            tower.eval()
        return self


class Depths(nn.Module):
    """The features of several depths side by side in place of the last ones: a pretrained network for what compares depths."""

    def __init__(self, vit: nn.Module, depths: int) -> None:
        super().__init__()
        self.vit, self.depths = vit, depths

    def forward(self, images: torch.Tensor) -> Output:
        """(n, 3, H, W) -> features (n, L * D), no logits (n, 0)."""
        features = torch.cat(depth_features(self.vit, images, self.depths), 1)
        return Output(features, features[:, :0])

    def extra_repr(self) -> str:
        """Part of the key of cached features."""
        return f"depths={self.depths}"


def depth_features(vit: Any, images: torch.Tensor, count: int) -> list[torch.Tensor]:
    """Features of `count` equally spaced depths, fewer where there are fewer blocks; each (n, D), the last before the head.

    Raises UsageError for a network that does not hand out its blocks.
    """
    if not hasattr(vit, "blocks") or "return_prefix_tokens" not in intermediates_form(vit):
        raise UsageError("regularizer.layers: this network hands out no blocks in a row (timm: forward_intermediates)")
    blocks = len(vit.blocks)
    chosen = sorted({round(blocks * k / count) - 1 for k in range(1, count)} - {-1, blocks - 1})
    final, tokens = vit.forward_intermediates(images, indices=chosen or [0], **intermediates_form(vit))
    found = [pooled(vit, block) for block in tokens] if chosen else []
    return [*found, vit.forward_head(final, pre_logits=True)]


def intermediates_form(vit: Any) -> dict[str, Any]:
    """Arguments of forward_intermediates: tokens with their prefix where timm has them, else maps; none without the method."""
    if not hasattr(vit, "forward_intermediates"):
        return {}
    tokens = "return_prefix_tokens" in inspect.signature(vit.forward_intermediates).parameters
    return {"return_prefix_tokens": True, "output_fmt": "NLC"} if tokens else {"output_fmt": "NCHW"}


def pooled(vit: Any, block: Any) -> torch.Tensor:
    """What the head would read of a block as forward_intermediates gives it: the class token, or the mean over the image;
    (n, D).
    """
    patches, prefix = block if isinstance(block, tuple) else (block, None)
    if patches.dim() == 4:
        return patches.mean((2, 3))
    if vit.global_pool == "token" and prefix is not None:
        return prefix[:, 0]
    return patches.mean(1)


class HeadOnly(nn.Module):
    """The head on precomputed features: linear probing encodes every image once, not once an epoch."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, features: torch.Tensor) -> Output:
        """(n, D) -> the same features, logits (n, C)."""
        return Output(features, self.head(features))


def frozen_copy(vit: nn.Module) -> nn.Module:
    """The pretrained reference: a copy that never trains, in eval mode, made before any surgery."""
    return copy.deepcopy(vit).eval().requires_grad_(False)
