"""Where a vision transformer looks: attention of the class token to the patches of one block."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from riftcli.errors import UsageError


@contextmanager
def _weights_of(block: Any) -> Iterator[list[torch.Tensor]]:
    """Collects the softmax weights (n, heads, T, T) of a block's attention; its fused kernel does not hand them out."""
    attn = block.attn
    seen: list[torch.Tensor] = []
    fused = attn.fused_attn
    attn.fused_attn = False
    handle = attn.attn_drop.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach()))
    try:
        yield seen
    finally:
        handle.remove()
        attn.fused_attn = fused


def attention_maps(vit: Any, images: torch.Tensor, block: int = -1) -> torch.Tensor:
    """Share of attention that goes to each patch; standardised images (n, 3, H, W) -> (n, heads, rows, columns), sums of 1.

    From the class token where the head reads it, else the mean over the patches, which the head then pools. Prefix tokens and
    prompts are left out and the rest is scaled to sum to 1. Raises UsageError for a model without such attention.
    """
    blocks = getattr(vit, "blocks", None)
    if blocks is None or not hasattr(blocks[0], "attn") or not hasattr(blocks[0].attn, "fused_attn"):
        raise UsageError("attention maps need a vision transformer with timm's attention blocks")
    if not -len(blocks) <= block < len(blocks):
        raise UsageError(f"--block {block}: the model has {len(blocks)} blocks, from 0, or negative from the end")
    vit.eval()
    with torch.inference_mode(), _weights_of(blocks[block]) as seen:
        vit.forward_features(images)
    weights = seen[0]  # (n, heads, T, T)
    rows, columns = vit.patch_embed.dynamic_feat_size(images.shape[-2:])
    patches = rows * columns  # the last tokens: class token, registers and prompts come before them
    queries = weights[:, :, :1] if vit.global_pool == "token" else weights[:, :, -patches:]
    maps = queries[..., -patches:].mean(2)
    maps = maps / maps.sum(-1, keepdim=True).clamp_min(1e-12)
    return maps.float().view(*maps.shape[:2], rows, columns)


def jensen_shannon(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """Jensen-Shannon distance (square root, base 2) of distributions in the last dimension; (..., P) -> (...).

    0 for equal, 1 for disjoint ones.
    """
    p, q = p.double(), q.double()
    middle = (p + q) / 2

    def to_middle(x: torch.Tensor) -> torch.Tensor:
        return (x * ((x / middle.clamp_min(1e-300)).clamp_min(1e-300)).log2()).sum(-1)

    return ((to_middle(p) + to_middle(q)) / 2).clamp(0, 1).sqrt()
