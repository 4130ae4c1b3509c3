"""The state to resume from: saved whole or not at all, verified before it is used. safetensors and JSON only.

last/step-000040/
    model.safetensors  optimizer.safetensors  penalty.safetensors  random.safetensors  state.json
    manifest.json      sha256 of each of them, written last
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from riftcli.errors import StorageError
from riftcli.models.weights import sha256

KEEP = 2  # the newest, and one to fall back to


def save(folder: Path, step: int, tensors: dict[str, dict[str, torch.Tensor]], state: dict[str, Any]) -> Path:
    """Write checkpoint `step` below `folder` (`last/`): tensors by file name, and a JSON state.

    Written beside its final name, flushed to disk, manifest last, then renamed: a kill at any point leaves the old
    checkpoints or the new one, never a mix.
    """
    from safetensors.torch import save_file

    final = folder / f"step-{step:08d}"
    partial = folder / f"step-{step:08d}.tmp"
    try:
        for stale in folder.glob("step-*.tmp"):
            shutil.rmtree(stale)
        partial.mkdir(parents=True)
        for name, table in tensors.items():
            copies = {key: value.detach().cpu().contiguous().clone() for key, value in table.items()}
            save_file(copies, partial / f"{name}.safetensors", metadata={"format": "pt"})
        (partial / "state.json").write_text(json.dumps(state, allow_nan=False), encoding="utf-8")
        digests = {file.name: sha256(file) for file in sorted(partial.iterdir())}
        for file in partial.iterdir():
            _fsync(file)
        (partial / "manifest.json").write_text(json.dumps({"step": step, "sha256": digests}), encoding="utf-8")
        _fsync(partial / "manifest.json")
        _fsync(partial)
        if final.exists():
            shutil.rmtree(final)
        partial.rename(final)
        _fsync(folder)
    except Exception as error:
        shutil.rmtree(partial, ignore_errors=True)
        size = sum(t.numel() * t.element_size() for table in tensors.values() for t in table.values())
        raise StorageError(
            f"{final}: checkpoint could not be written ({error}); it needs {size / 1e6:.0f} MB; earlier checkpoints are intact"
        ) from error
    for old in sorted(folder.glob("step-????????"))[:-KEEP]:
        shutil.rmtree(old)
    return final


def load_newest(folder: Path, warn: Callable[[str], None]) -> tuple[dict[str, dict[str, torch.Tensor]], dict[str, Any]]:
    """(tensors, state) of the newest checkpoint whose every checksum holds; raise StorageError when there is none.

    A damaged one is named in a warning, set aside, and the one before it used.
    """
    from safetensors.torch import load_file

    for candidate in sorted(folder.glob("step-????????"), reverse=True):
        try:
            manifest = json.loads((candidate / "manifest.json").read_text(encoding="utf-8"))
            for name, digest in manifest["sha256"].items():
                if sha256(candidate / name) != digest:
                    raise ValueError(f"{name} does not match its checksum")
            state = json.loads((candidate / "state.json").read_text(encoding="utf-8"))
            tensors = {f.stem: load_file(f) for f in candidate.glob("*.safetensors")}
            return tensors, state
        except (OSError, ValueError, KeyError) as error:
            # renamed, never deleted: it must neither count as the one to fall back to nor be written over
            aside = candidate.rename(candidate.with_name(f"{candidate.name}.damaged"))
            warn(f"{candidate}: damaged checkpoint ({error}); set aside as {aside.name}, falling back to the one before it")
    raise StorageError(f"{folder}: no whole checkpoint to resume from; start again with --overwrite")


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# ---------------------------------------------------------------------------------------------------------------------
# optimizer state as flat tensors


def pack_optimizer(optimizer: torch.optim.Optimizer) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """(tensors, JSON) of an optimizer's state; every value bit for bit."""
    state = optimizer.state_dict()
    tensors, scalars = {}, {}
    for index, values in state["state"].items():
        for name, value in values.items():
            if isinstance(value, torch.Tensor):
                tensors[f"{index}/{name}"] = value
            else:
                scalars[f"{index}/{name}"] = value
    return tensors, {"groups": state["param_groups"], "scalars": scalars}


def unpack_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor], packed: dict[str, Any]) -> None:
    """Inverse of pack_optimizer, into an optimizer built the same way."""
    state: dict[int, dict[str, Any]] = {}
    for key, value in [*tensors.items(), *packed["scalars"].items()]:
        index, _, name = key.partition("/")
        state.setdefault(int(index), {})[name] = value
    groups = [{k: tuple(v) if k == "betas" else v for k, v in group.items()} for group in packed["groups"]]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
