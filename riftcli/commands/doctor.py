"""rift doctor."""

from __future__ import annotations

import os
import platform

import typer

from riftcli.errors import ExitCode


def doctor() -> None:
    """Versions, devices and what is wrong with them, each with its remedy."""
    from importlib import metadata

    problems = []
    print(f"python {platform.python_version()} on {platform.platform()}, {os.cpu_count()} cores")
    for name in ("riftcli", "torch", "torchvision", "timm", "torchmetrics", "scikit-learn", "safetensors"):
        try:
            print(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            problems.append(f"{name} is not installed; pip install {name}")
    try:
        import torch
        import torchvision  # noqa: F401 - a mismatch with torch shows when it is imported

        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        for i in range(count):
            print(f"cuda:{i} {torch.cuda.get_device_name(i)}, {torch.cuda.get_device_properties(i).total_memory >> 30} GiB")
        if not count:
            print("no GPU visible to torch: runs use the CPU")
    except (ImportError, RuntimeError, OSError) as error:
        problems.append(f"torch and torchvision do not fit together ({error}); pip install --upgrade torch torchvision")
    if os.environ.get("HF_HUB_OFFLINE"):
        print("HF_HUB_OFFLINE is set: weights come from the cache or from model.weights")
    for problem in problems:
        print(f"problem: {problem}")
    if problems:
        raise typer.Exit(ExitCode.ENVIRONMENT)
    print("all well")
