"""Which arguments of timm.create_model a recipe or a model folder may give. No torch here."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

REFUSED = (
    "cache_dir",
    "checkpoint_path",
    "device",
    "dtype",
    "exportable",
    "feature_cfg",
    "features_only",
    "kwargs_filter",
    "model_cfg",
    "model_name",
    "no_jit",
    "num_classes",
    "pretrained",
    "pretrained_cfg",
    "pretrained_cfg_overlay",
    "pretrained_custom_load",
    "pretrained_filter_fn",
    "pretrained_model_args",
    "pretrained_strict",
    "pruned",
    "scriptable",
)  # fmt: skip - name files, hubs or code, or what riftcli decides
LIMITS = {"depth": 1_000, "depths": 1_000, "num_heads": 4_096, "embed_dim": 65_536, "img_size": 16_384, "patch_size": 16_384}


def check_model_args(args: Mapping[str, Any]) -> None:
    """Raise ValueError for an argument that is not about the network's form, or a network that no memory holds."""
    for key, value in args.items():
        if key in REFUSED:
            raise ValueError(f"{key} is no form of a network (it names files, hubs or code, or riftcli sets it); leave it out")
        for number in value if isinstance(value, list | tuple) else [value]:
            whole = isinstance(number, int) and not isinstance(number, bool)
            if key in LIMITS and number is not None and not (whole and 1 <= number <= LIMITS[key]):
                raise ValueError(f"{key} must be a whole number from 1 to {LIMITS[key]}, got {str(number)[:40]}")
    depth, width = args.get("depth", 1), args.get("embed_dim", 1)
    if isinstance(depth, int) and isinstance(width, int):
        needed = 12 * depth * width**2 * 4  # fp32 weights of the blocks
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        if needed > memory:
            what = f"depth {depth} x embed_dim {width}"
            raise ValueError(f"{what} takes {needed / 1e9:,.0f} GB, and this machine has {memory / 1e9:,.0f} GB; make it smaller")
