"""Names of the linear layers of a ViT block, as recipes give them. No torch here."""

from __future__ import annotations

SLICES = {"q": 0, "k": 1, "v": 2}  # rows [0:d], [d:2d], [2d:3d] of the fused qkv
WHOLE = {"qkv": ("attn", "qkv"), "proj": ("attn", "proj"), "fc1": ("mlp", "fc1"), "fc2": ("mlp", "fc2")}
TARGETS = [*SLICES, *WHOLE]


def check_targets(targets: list[str]) -> None:
    """Raise ValueError for layers that do not exist, stand twice, or overlap."""
    unknown = [name for name in targets if name not in TARGETS]
    if unknown or not targets:
        raise ValueError(f"targets: choose from {', '.join(TARGETS)}")
    if len(set(targets)) < len(targets) or ("qkv" in targets and set(SLICES) & set(targets)):
        raise ValueError("targets: each layer once; qkv is q, k and v with one pair of factors")
