"""Tensors from files into networks: whole, finite, and of a kind that a copy does not change without a word."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from riftcli.errors import ModelError

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a .safetensors file; raise ModelError."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path}: not a readable safetensors file ({error}); copy it again, or train again") from error


def tensor_names(path: Path) -> list[str]:
    """Names of the tensors in a .safetensors file; raise ModelError."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            return list(file.keys())
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path}: not a readable safetensors file ({error}); copy it again, or train again") from error


def check_values(state: Mapping[str, Any], own: Mapping[str, torch.Tensor], source: str) -> None:
    """Raise ModelError for a tensor that is not finite in fp32, or not of floats where the network has floats."""
    for name, value in state.items():
        if not isinstance(value, torch.Tensor) or name not in own or not own[name].is_floating_point():
            continue  # what is missing or too much is told elsewhere; counters of batch norms are whole numbers
        if value.dtype not in FLOATS:
            kind = str(value.dtype).removeprefix("torch.")
            raise ModelError(
                f"weights {source}: {name} is {kind}, which a copy to fp32 would change; convert it to fp32, and say how"
            )
        bad = int((~torch.isfinite(value.float())).sum())
        if bad:
            raise ModelError(
                f"weights {source}: {name} has {bad} of {value.numel()} values that are NaN or inf; get the file again"
            )


def load_into(network: nn.Module, state: dict[str, torch.Tensor], source: str) -> None:
    """Put every tensor into a network; raise ModelError where they do not fit or are no weights."""
    check_values(state, network.state_dict(), source)
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()[1:] if line.strip()]
        raise ModelError(f"weights {source} do not fit the model: {lines[0][:200] if lines else error}") from error


@contextmanager
def recorded_loads(source: str) -> Iterator[list[Any]]:
    """What every load_state_dict inside the block could not match; raise ModelError for tensors that are no weights.

    timm drops strictness as soon as the number of classes differs from the checkpoint's: a misfit then leaves random
    weights behind with no more than a log line.
    """
    original = nn.Module.load_state_dict
    results: list[Any] = []

    def recording(module: nn.Module, state_dict: Any, *args: Any, **kwargs: Any) -> Any:
        check_values(state_dict, module.state_dict(), source)
        results.append(original(module, state_dict, *args, **kwargs))
        return results[-1]

    # the network does not exist yet, so there is no instance to hook into
    nn.Module.load_state_dict = recording  # type: ignore[method-assign,assignment]
    try:
        yield results
    finally:
        nn.Module.load_state_dict = original  # type: ignore[method-assign]
