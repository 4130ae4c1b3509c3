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
    for line in _faster():
        print(f"faster: {line}")
    if os.environ.get("HF_HUB_OFFLINE"):
        print("HF_HUB_OFFLINE is set: weights come from the cache or from model.weights")
    for problem in problems:
        print(f"problem: {problem}")
    if problems:
        raise typer.Exit(ExitCode.ENVIRONMENT)
    print("all well")


BF16 = {"avx512_bf16", "amx_bf16", "bf16"}  # what Linux calls it on x86 and on ARM


def _faster() -> list[str]:
    """What would make runs on this machine faster, each with what to do."""
    import shutil

    from riftcli.data.parallel import SMALL

    found = []
    try:
        import torch
    except (ImportError, OSError):
        return []
    if os.path.exists("/dev/nvidia0") and not torch.cuda.is_available():
        found.append(f"there is an NVIDIA GPU, and torch {torch.__version__} does not see it: install a build for CUDA")
    if not torch.cuda.is_available() and not _cpu_flags() & BF16:
        found.append("this CPU has no bf16 arithmetic: leave train.precision at auto or fp32, bf16 is only emulated here")
    if os.environ.get("OMP_NUM_THREADS", "").strip() == "1" and (os.cpu_count() or 1) > 1:
        found.append("OMP_NUM_THREADS is 1: one process then uses one core; unset it unless several processes share the machine")
    if os.path.isdir("/dev/shm") and shutil.disk_usage("/dev/shm").total < SMALL:
        found.append("/dev/shm is below 1 GB: start the container with --shm-size=8g, or use train.workers 0")
    return found


def _cpu_flags() -> set[str]:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            line = next((line for line in file if line.startswith(("flags", "Features"))), None)
    except OSError:
        line = None
    return BF16 if line is None else set(line.partition(":")[2].split())  # nothing known, nothing said
