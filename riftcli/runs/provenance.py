"""Who made a result: versions, device, command, commit, time, memory."""

from __future__ import annotations

import json
import os
import platform
import resource
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from riftcli.version import __version__

if TYPE_CHECKING:
    import torch


def now() -> str:
    """UTC time, ISO 8601, seconds."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def environment(device: Any, precision: str, world_size: int, seed: int) -> dict[str, Any]:
    """The `env` part of a report; `device` is a torch.device."""
    import timm
    import torch

    return {
        "riftcli": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "timm": timm.__version__,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "world_size": world_size,
        "precision": precision,
        "seed": seed,
    }


def provenance(env: dict[str, Any]) -> dict[str, Any]:
    """What made this run: command, versions, machine, commit."""
    import torch

    command = json.loads(os.environ.get("RIFT_COMMAND", "null")) or [Path(sys.argv[0]).name, *sys.argv[1:]]
    machine = {"platform": platform.platform(), "threads": torch.get_num_threads(), "git": _git_commit()}
    machine["images"] = {name: installed(name) for name in ("pillow", "torchvision", "torchcodec")}
    return {"created": now(), "command": command, "seed": env["seed"], **process(), "env": {**env, **machine}}


def installed(name: str) -> str | None:
    """The version of a package, or None."""
    from importlib import metadata

    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def process() -> dict[str, Any]:
    """Which process this is, for whoever wants to know whether it is alive."""
    return {"pid": os.getpid(), "host": platform.node(), "launcher": launcher()}


def launcher() -> str | None:
    """Which elastic launcher started this process; the same after it has started all of its workers once more."""
    job = os.environ.get("TORCHELASTIC_RUN_ID")
    return None if job is None else f"{job}@{platform.node()}:{os.getppid()}"


def restarted() -> bool:
    """True in a worker that an elastic launcher started once more, after one of them had died (torchrun --max-restarts)."""
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"


def _git_commit() -> str | None:
    """Commit of the working directory, if it is a repository."""
    import subprocess

    try:
        result = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip() or None


def peak_memory_bytes(device: torch.device) -> int:
    """Peak memory of this process: allocated on the GPU, or resident on the CPU."""
    import torch

    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
