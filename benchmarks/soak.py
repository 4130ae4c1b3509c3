"""Does a long run stay as it began? Memory, open files and the time of a step over thousands of steps.

    python benchmarks/soak.py [STEPS]

The small ViT of the demo on digits with RIFT, augmentation, two data workers, a checkpoint every 50 steps and a validation in
every epoch, in one process. Printed for six equal parts of the run: resident memory at the end of the part, open descriptors, and
the median time between two steps; then the last part relative to the second (in the first one, caches fill).
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import riftcli

PARTS, BATCH, TRAIN = 6, 32, 640
RECIPE = {
    "model": {"name": "asset:demo_vit"},
    "data": {"format": "digits", "train": {"from": "train", "limit": TRAIN + 160}, "val": {"fraction": 0.2, "from": "train"}},
    "regularizer": {"name": "rift"},
    "augment": {"flip": 0.5, "crop_min_area": 0.7},
    "optim": {"lr": 1e-4},
    "train": {"batch_size": BATCH, "workers": 2, "head_init": "zeros", "save_every_steps": 50, "on_collapse": "warn"},
    "eval": {"metrics": ["acc", "cka"]},
}


def watch(log: Path, samples: list[tuple[float, int, int, int]], ended: threading.Event) -> None:
    """(seconds, steps, resident bytes, descriptors) every tenth of a second."""
    while not ended.wait(0.1):
        steps = log.read_bytes().count(b'"kind": "step"') if log.is_file() else 0
        resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        samples.append((time.monotonic(), steps, resident, len(os.listdir("/proc/self/fd"))))


def main(steps: int) -> None:
    """Train, watch, print."""
    epochs = -(-steps // (TRAIN // BATCH))
    samples: list[tuple[float, int, int, int]] = []
    ended = threading.Event()
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "r"
        watcher = threading.Thread(target=watch, args=(run / "metrics.jsonl", samples, ended), daemon=True)
        watcher.start()
        recipe = {**RECIPE, "train": {**RECIPE["train"], "epochs": epochs}}  # type: ignore[dict-item]
        riftcli.finetune(recipe, out=run, device="cpu", quiet=True)
        ended.set()
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    total = sum(row["kind"] == "step" for row in rows)
    print(f"{total} steps of batch {BATCH}, load {os.getloadavg()[0]:.1f}")
    print(f"{'steps':>12} {'MB':>8} {'descriptors':>12} {'ms a step':>10}")
    parts = []
    for k in range(PARTS):
        low, high = total * k // PARTS, total * (k + 1) // PARTS
        own = [sample for sample in samples if low < sample[1] <= high]
        pace = [1000 * (b[0] - a[0]) / (b[1] - a[1]) for a, b in zip(own, own[10:], strict=False) if b[1] > a[1]]
        parts.append((own[-1][2] / 1e6, max(sample[3] for sample in own), statistics.median(pace)))
        print(f"{low + 1:>5} - {high:<5} {parts[-1][0]:>7.0f} {parts[-1][1]:>12} {parts[-1][2]:>10.1f}")
    second, last = parts[1], parts[-1]
    ratios = ", ".join(f"{name} {b / a:.3f}" for name, a, b in zip(("memory", "descriptors", "time"), second, last, strict=True))
    print(f"last part relative to the second: {ratios}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3000)
