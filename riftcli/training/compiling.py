"""torch.compile, where a recipe asks for it."""

from __future__ import annotations

from typing import Any

import torch


def compiles(setting: bool | str, device: torch.device) -> bool:
    """`train.compile` on a device."""
    return device.type == "cuda" if setting == "auto" else bool(setting)


def compiled(module: Any) -> Any:
    """The module, compiled whole for the shapes that come. Random numbers are those that it draws uncompiled, so that drop path
    hits the same samples, a resumed run too.
    """
    import torch._inductor.config

    torch._inductor.config.fallback_random = True
    return torch.compile(module, dynamic=False)
