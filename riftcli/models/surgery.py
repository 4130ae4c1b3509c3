"""Surgery on a built timm ViT, from outside: what to freeze, which layers to replace, how to fold them back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from riftcli.errors import UsageError
from riftcli.models.targets import SLICES, WHOLE


@runtime_checkable
class Mergeable(Protocol):
    """A layer that stands in for another one and can be folded into it."""

    def merged(self) -> nn.Module:
        """The plain layer that computes the same."""


def freeze_backbone(vit: Any) -> None:
    """Only the head trains."""
    vit.requires_grad_(False)
    vit.get_classifier().requires_grad_(True)


def blocks(vit: Any, who: str) -> list[Any]:
    """The transformer blocks; raise UsageError for a network that is not a plain ViT. `who` asks, for the message."""
    found = list(getattr(vit, "blocks", []))
    plain = [b for b in found if all(hasattr(b, part) for part in ("norm1", "attn", "norm2", "mlp"))]
    if not found or len(plain) < len(found):
        what = "is not a plain vision transformer (blocks of norm1, attn, norm2, mlp)"
        raise UsageError(f"adapter.name {who}: {model_name(vit)} {what}")
    return found


def check_qkv_is_called(attention: Any, vit: Any, who: str) -> None:
    """Raise UsageError for an attention (BEiT, EVA) that takes the weight of its qkv layer and never calls the layer."""
    if getattr(attention, "q_bias", None) is not None and not getattr(attention, "qkv_bias_separate", False):
        raise UsageError(f"adapter.name {who}: the attention of {model_name(vit)} does not call its qkv layer")


def model_name(vit: Any) -> str:
    """For messages."""
    return getattr(vit, "pretrained_cfg", {}).get("architecture") or type(vit).__name__


def target_layers(vit: Any, targets: list[str], who: str) -> Iterator[tuple[nn.Module, str, nn.Linear, list[tuple[int, int]]]]:
    """(parent, attribute, layer, row ranges of its output) for every layer that `targets` names, block by block."""
    for index, block in enumerate(blocks(vit, who)):
        wanted: dict[tuple[str, str], list[tuple[int, int]]] = {}
        for target in targets:
            place = WHOLE["qkv"] if target in SLICES else WHOLE[target]
            layer = getattr(getattr(block, place[0]), place[1], None)
            if not isinstance(layer, nn.Linear):
                raise UsageError(f"adapter.name {who}: block {index} has no linear layer {'.'.join(place)} for target '{target}'")
            if place == WHOLE["qkv"]:
                check_qkv_is_called(block.attn, vit, who)
            size = layer.out_features
            rows = (size // 3 * SLICES[target], size // 3 * (SLICES[target] + 1)) if target in SLICES else (0, size)
            wanted.setdefault(place, []).append(rows)
        for (part, name), ranges in wanted.items():
            parent = getattr(block, part)
            yield parent, name, getattr(parent, name), sorted(ranges)


def plain_linear(weight: torch.Tensor, bias: torch.Tensor | None) -> nn.Linear:
    """A linear layer with these values; (out, in), (out,)."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device=weight.device, dtype=weight.dtype)
    with torch.no_grad():
        layer.weight.copy_(weight)
        if bias is not None:
            layer.bias.copy_(bias)
    return layer


def merge(vit: nn.Module) -> nn.Module:
    """Fold every inserted layer that can be folded back, in place; the result has timm's own parameter names."""
    for name, module in list(vit.named_modules()):
        if isinstance(module, Mergeable):
            parent, _, attribute = name.rpartition(".")
            setattr(vit.get_submodule(parent), attribute, module.merged().train(vit.training))
    return vit
