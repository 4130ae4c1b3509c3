"""The state to resume from: saved whole or not at all, verified before it is used. safetensors and JSON only.

last/step-000040/
    model.safetensors  optimizer.safetensors  penalty.safetensors  random.safetensors  state.json
    manifest.json      sha256 of each of them, written last
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from riftcli import files
from riftcli.errors import StorageError
from riftcli.models.published import sha256
from riftcli.models.weights import write_tensors

KEEP = 2  # the newest, and one to fall back to
MANIFEST, STATE = "manifest.json", "state.json"

Tables = dict[str, dict[str, torch.Tensor]]
Check = Callable[[Tables, dict[str, Any]], None]


def save(folder: Path, step: int, tensors: Tables, state: dict[str, Any]) -> Path:
    """Write checkpoint `step` below `folder` (`last/`): tensors by file name, and a JSON state.

    Written beside its final name, flushed to disk, manifest last, then renamed: a kill at any point leaves the old
    checkpoints or the new one, never a mix.
    """
    final = folder / f"step-{step:08d}"
    partial = folder / f"step-{step:08d}.tmp"
    try:
        for stale in folder.glob("step-*.tmp"):
            shutil.rmtree(stale)
        partial.mkdir(parents=True)
        for name, table in tensors.items():
            write_tensors(partial / f"{name}.safetensors", table)
        (partial / STATE).write_text(json.dumps(state, allow_nan=False), encoding="utf-8")
        digests = {file.name: sha256(file) for file in sorted(partial.iterdir())}
        for file in partial.iterdir():
            files.fsync(file)
        (partial / MANIFEST).write_text(json.dumps({"step": step, "sha256": digests}), encoding="utf-8")
        files.fsync(partial / MANIFEST)
        files.fsync(partial)
        if final.exists():
            shutil.rmtree(final)
        partial.rename(final)
        files.fsync(folder)
    except Exception as error:
        shutil.rmtree(partial, ignore_errors=True)
        size = sum(t.numel() * t.element_size() for table in tensors.values() for t in table.values())
        raise StorageError(
            f"{final}: checkpoint could not be written ({error}); it needs {files.megabytes(size)}; "
            "earlier checkpoints are intact"
        ) from error
    for old in sorted(folder.glob("step-????????"))[:-KEEP]:
        shutil.rmtree(old)
    return final


def any_saved(folder: Path) -> bool:
    """Whether any checkpoint was ever written below `folder`, whole or damaged."""
    return any(path.suffix != ".tmp" for path in folder.glob("step-*"))


def load_newest(folder: Path, warn: Callable[[str], None], check: Check = lambda t, s: None) -> tuple[Tables, dict[str, Any]]:
    """(tensors, state) of the newest checkpoint that is whole; raise StorageError when there is none.

    check: raises ValueError for what a run like this one cannot have written. A damaged one is named in a warning, set aside,
    and the one before it used.
    """
    from safetensors import SafetensorError

    for candidate in sorted(folder.glob("step-????????"), reverse=True):
        try:
            tensors, state = _read(candidate)
            check(tensors, state)
            return tensors, state
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            # renamed, never deleted: it must neither count as the one to fall back to nor be written over
            aside = candidate.rename(_aside(candidate))
            reason = " ".join(str(error).split())[:300]
            warn(f"{candidate}: damaged checkpoint ({reason}); set aside as {aside.name}, falling back to the one before it")
    raise StorageError(f"{folder}: no whole checkpoint to resume from; start again with --overwrite")


def _read(folder: Path) -> tuple[Tables, dict[str, Any]]:
    """What a checkpoint holds, if it is all that its manifest lists and nothing else."""
    from safetensors.torch import load_file

    manifest = files.read_json(folder / MANIFEST)
    listed = manifest.get("sha256")
    if not isinstance(listed, dict) or manifest.get("step") != int(folder.name.removeprefix("step-")):
        raise ValueError(f"{MANIFEST} is not that of this step")
    present = {path.name for path in folder.iterdir()} - {MANIFEST}
    if set(listed) != present or STATE not in present:
        raise ValueError(f"{MANIFEST} lists {', '.join(sorted(set(listed) ^ present)) or 'nothing'} otherwise than there is")
    for name, digest in listed.items():
        files.check_readable(folder / name, most=1 << 62)
        if (folder / name).is_symlink() or sha256(folder / name) != digest:
            raise ValueError(f"{name} does not match its checksum")
    tensors = {path.stem: load_file(path) for path in folder.glob("*.safetensors")}
    return tensors, files.read_json(folder / STATE)


def _aside(candidate: Path) -> Path:
    """A name for a damaged checkpoint that is not taken yet."""
    found, number = candidate.with_name(f"{candidate.name}.damaged"), 1
    while found.exists():
        number += 1
        found = candidate.with_name(f"{candidate.name}.damaged-{number}")
    return found


# ---------------------------------------------------------------------------------------------------------------------
# optimizer state as flat tensors

TENSOR = "$tensor"  # {"$tensor": "0/exp_avg"}: a tensor of that name, inside what is otherwise JSON
TUPLE = "$tuple"  # {"$tuple": [...]}
FLOAT, DTYPE = "$float", "$dtype"  # what JSON has no word for: inf and nan, torch.float32
_DTYPES = {str(kind).removeprefix("torch."): kind for kind in vars(torch).values() if isinstance(kind, torch.dtype)}


def pack_optimizer(optimizer: torch.optim.Optimizer) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """(tensors, JSON) of an optimizer's state; every value bit for bit. Raises TypeError for a state that is neither."""
    state = optimizer.state_dict()
    tensors: dict[str, torch.Tensor] = {}
    packed = {str(index): _flat(values, str(index), tensors) for index, values in state["state"].items()}
    return tensors, {"groups": _flat(state["param_groups"], "group", tensors), "state": packed}


def _flat(value: Any, name: str, tensors: dict[str, torch.Tensor]) -> Any:
    """JSON of a value, with its tensors put aside by name."""
    if isinstance(value, torch.Tensor):
        tensors[name] = value
        return {TENSOR: name}
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: _flat(entry, f"{name}/{key}", tensors) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        entries = [_flat(entry, f"{name}/{i}", tensors) for i, entry in enumerate(value)]
        return {TUPLE: entries} if isinstance(value, tuple) else entries
    if isinstance(value, float) and not math.isfinite(value):
        return {FLOAT: str(value)}
    if isinstance(value, torch.dtype):
        return {DTYPE: str(value).removeprefix("torch.")}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{name} is a {type(value).__name__}, which is not saved")


def _unflat(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """Inverse of _flat; raise KeyError for a tensor that is not there."""
    if isinstance(value, dict):
        if set(value) == {TENSOR}:
            return tensors[value[TENSOR]]
        if set(value) == {TUPLE}:
            return tuple(_unflat(entry, tensors) for entry in value[TUPLE])
        if set(value) == {FLOAT}:
            return float(value[FLOAT])
        if set(value) == {DTYPE}:
            return _DTYPES[value[DTYPE]]
        return {key: _unflat(entry, tensors) for key, entry in value.items()}
    return [_unflat(entry, tensors) for entry in value] if isinstance(value, list) else value


def named_tensors(value: Any) -> set[str]:
    """Names of the tensors in what _flat made."""
    if isinstance(value, dict):
        return {value[TENSOR]} if set(value) == {TENSOR} else set().union(*map(named_tensors, value.values()))
    return set().union(*map(named_tensors, value)) if isinstance(value, list) else set()


def unpack_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor], packed: dict[str, Any]) -> None:
    """Inverse of pack_optimizer, into an optimizer built the same way."""
    if "scalars" in packed:  # as checkpoints were before they could hold lists
        state: dict[int, dict[str, Any]] = {}
        for key, value in [*tensors.items(), *packed["scalars"].items()]:
            index, _, name = key.partition("/")
            state.setdefault(int(index), {})[name] = value
        groups = [{k: tuple(v) if k == "betas" else v for k, v in group.items()} for group in packed["groups"]]
    else:
        state = {int(index): _unflat(values, tensors) for index, values in packed["state"].items()}
        groups = _unflat(packed["groups"], tensors)
    optimizer.load_state_dict({"state": state, "param_groups": groups})
