"""torch.compile, where a recipe asks for it."""

from __future__ import annotations

import os
import shlex
import shutil
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from riftcli.errors import EnvironmentError
from riftcli.protocols import Output


def compiles(setting: bool | str, device: torch.device) -> bool:
    """`train.compile` on a device; raise EnvironmentError where it is asked for and cannot be had."""
    if setting == "auto":
        return device.type == "cuda" and can_compile(device)
    if setting and not can_compile(device):
        raise EnvironmentError(
            "train.compile: torch.compile needs a C++ compiler (g++), and on GPUs triton; install it, or set train.compile=false"
        )
    return bool(setting)


def can_compile(device: torch.device) -> bool:
    """Whether torch.compile will find what it needs; runtime images of containers often have no compiler."""
    if device.type != "cuda":
        return _has_compiler("CXX", "g++", "clang++")
    major, _ = torch.cuda.get_device_capability(device)
    return major >= 7 and find_spec("triton") is not None and _has_compiler("CC", "gcc", "clang")


def _has_compiler(variable: str, *names: str) -> bool:
    """The variable may name one with a launcher before it or options behind it (`ccache g++`)."""
    own = shlex.split(os.environ.get(variable) or "")[:1]
    return any(map(shutil.which, own or names))


def compiled(module: Any, graphs: bool = False) -> Any:
    """The module, compiled whole for the shapes that come. Random numbers are those that it draws uncompiled, so that drop path
    hits the same samples, a resumed run too.

    graphs: its kernels are recorded once, forward and backward, and replayed by one call each (CUDA graphs), which pays where
    the host takes longer to start them than the device to compute them: in small batches. Elsewhere than on GPUs, the same
    without.
    """
    import torch._inductor.config

    torch._inductor.config.fallback_random = True
    if not graphs:
        return torch.compile(module, dynamic=False)
    return Replayed(torch.compile(module, dynamic=False, options={"triton.cudagraphs": True}))


class Replayed(nn.Module):
    """What replays its kernels writes over its outputs of the last time, so that callers get copies."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs: torch.Tensor) -> Output:
        """As the module's."""
        torch.compiler.cudagraph_mark_step_begin()
        return Output._make(None if part is None else part.clone() for part in self.module(*inputs))
