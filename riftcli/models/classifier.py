"""One forward that returns features and logits, around a timm model; and its frozen copy."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from riftcli.protocols import Output


class Classifier(nn.Module):
    """A timm ViT whose one forward returns features and logits; what DDP wraps."""

    def __init__(self, vit: nn.Module, frozen_backbone: bool = False) -> None:
        super().__init__()
        self.vit: Any = vit
        self.frozen_backbone = frozen_backbone

    def forward(self, images: torch.Tensor) -> Output:
        """(n, 3, H, W) -> features (n, D) before the head, logits (n, C)."""
        features = self.vit.forward_head(self.vit.forward_features(images), pre_logits=True)
        return Output(features, self.vit.get_classifier()(features))

    def train(self, mode: bool = True) -> Classifier:
        """Dropout and drop path stay off in a backbone that does not train: its head would learn on noisy features."""
        super().train(mode)
        if mode and self.frozen_backbone:
            self.vit.eval()
        return self


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
