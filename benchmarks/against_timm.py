"""A whole training beside one of timm's parts: the same weights, images, augmentation, steps, kind of schedule.

python benchmarks/against_timm.py WEIGHTS DATA [--size 98] [--epochs 4] [--batch-size 32] [--workers 1] [--rounds 2]

WEIGHTS: a timm model folder. DATA: class folders below `train/` and `test/` (which is validated after every epoch, and chooses
nothing here). The other side is the loop that timm's own training script runs, written with its loader, transforms, optimizer and
scheduler: the script itself is no part of its wheel. Both start with a new head and validate after every epoch; one process with
one thread, and the data workers. Wall time from the first step, so run it on an idle machine; rounds alternate, and each has a
seed of its own.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch
from timm import create_model
from timm.data import create_dataset, create_loader, resolve_data_config
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from torch import nn

from riftcli import recipe as recipes
from riftcli.runs.folder import RunFolder
from riftcli.training.finetune import finetune
from riftcli.training.optim import warmup_steps

LR, DECAY, WARMUP, AREA = 2e-5, 0.05, 0.15, 0.35
THEIRS = "timm's parts"
Curve = list[tuple[float, float]]  # seconds since the first step, accuracy on the validated images; after every epoch


def theirs(options: argparse.Namespace, classes: int, seed: int) -> tuple[Curve, float]:
    """The curve, and images a second while training."""
    torch.manual_seed(seed)
    name = f"local-dir:{options.weights}"
    model = create_model(name, pretrained=True, num_classes=classes, img_size=options.size).train()
    config = resolve_data_config({}, model=model)
    common = {
        "input_size": (3, options.size, options.size),
        "batch_size": options.batch_size,
        "use_prefetcher": False,  # which is for GPUs
        "mean": config["mean"],
        "std": config["std"],
        "num_workers": options.workers,
        "pin_memory": False,
    }
    splits = {part: create_dataset("", root=options.data / part, split=part) for part in ("train", "test")}
    augmented = {"scale": (AREA, 1.0), "hflip": 0.5, "color_jitter": None, "interpolation": config["interpolation"]}
    train = create_loader(splits["train"], is_training=True, persistent_workers=options.workers > 0, **augmented, **common)
    test = create_loader(
        splits["test"], is_training=False, crop_pct=1.0, persistent_workers=options.workers > 0, interpolation="bicubic", **common
    )
    optimizer = create_optimizer_v2(model, opt="adamw", lr=LR, weight_decay=DECAY)
    steps = len(train)
    total = steps * options.epochs
    warm = warmup_steps(total, WARMUP, 2)
    schedule = CosineLRScheduler(  # to 0 at the last step, as ours: timm's script would cut the cosine off before that
        optimizer, t_initial=total - warm, warmup_t=warm, warmup_lr_init=LR / warm, warmup_prefix=True, t_in_epochs=False
    )
    loss_of, curve, updates, training = nn.CrossEntropyLoss(), [], 0, 0.0
    began = time.perf_counter()
    for _ in range(options.epochs):
        model.train()
        start = time.perf_counter()
        for images, targets in train:
            optimizer.zero_grad()
            loss_of(model(images), targets).backward()
            optimizer.step()
            updates += 1
            schedule.step_update(updates)
        training += time.perf_counter() - start
        model.eval()
        with torch.inference_mode():
            hits = sum(int((model(images).argmax(1) == targets).sum()) for images, targets in test)
        curve.append((time.perf_counter() - began, hits / len(splits["test"])))
    return curve, total * options.batch_size / training


def ours(options: argparse.Namespace, seed: int) -> tuple[Curve, float]:
    """The same of a run as `rift finetune` makes it, with its checkpoints, logs and checks; without its page."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        (place / "data").mkdir()
        for ours_, theirs_ in (("train", "train"), ("val", "test")):
            (place / "data" / ours_).symlink_to((options.data / theirs_).resolve())
        recipe = {
            "model": {"name": f"local-dir:{options.weights}", "image_size": options.size, "crop_pct": 1.0},
            "data": {
                "format": "image_folder",
                "root": str(place / "data"),
                "follow_links": True,
                "val": {"from": "val"},
                "test": None,
            },
            "augment": {"flip": 0.5, "crop_min_area": AREA},
            "regularizer": {"name": "none"},
            "optim": {"name": "adamw", "lr": LR, "weight_decay": DECAY},
            "schedule": {"name": "cosine", "warmup": WARMUP},
            "train": {
                "epochs": options.epochs,
                "batch_size": options.batch_size,
                "head_init": "normal",
                "seed": seed,
                "workers": options.workers,
            },
            "eval": {"metrics": ["acc"], "best": "acc", "batch_size": options.batch_size},
        }
        (place / "r.yaml").write_text(recipes.dump(recipe))
        marks = []
        append = RunFolder.append

        def timed(self: RunFolder, row: dict) -> None:
            append(self, row)
            if row["kind"] == "eval":  # the first is of before the first step
                marks.append((time.perf_counter(), row["acc"]))

        RunFolder.append = timed  # type: ignore[method-assign]
        try:
            finetune(recipes.load(str(place / "r.yaml"), []), place / "run", device="cpu")
        finally:
            RunFolder.append = append  # type: ignore[method-assign]
        timing = json.loads((place / "run/metrics.json").read_text())["timing"]
    (began, _), *rest = marks
    return [(at - began, accuracy) for at, accuracy in rest], timing["images_per_second"]


def main(options: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    classes = len([path for path in (options.data / "train").iterdir() if path.is_dir()])
    found: dict[str, list[tuple[Curve, float]]] = {THEIRS: [], "riftcli": []}
    for number in range(options.rounds):
        for name in list(found)[:: 1 if number % 2 == 0 else -1]:
            curve, speed = theirs(options, classes, number) if name == THEIRS else ours(options, number)
            found[name].append((curve, speed))
            shown = ", ".join(f"{accuracy:.3f} after {seconds:.1f} s" for seconds, accuracy in curve)
            print(f"{name}: {speed:.1f} images/s while training; accuracy {shown}", flush=True)
    pairs = list(zip(found["riftcli"], found[THEIRS], strict=True))
    whole = [ours_[0][-1][0] / theirs_[0][-1][0] for ours_, theirs_ in pairs]
    speeds = [ours_[1] / theirs_[1] for ours_, theirs_ in pairs]
    for epoch in range(options.epochs):
        reached = {name: [curve[epoch][1] for curve, _ in runs] for name, runs in found.items()}
        means = (f"{name} {statistics.mean(a):.3f} ({min(a):.3f} to {max(a):.3f})" for name, a in reached.items())
        print(f"accuracy after epoch {epoch + 1}, mean of {options.rounds} seeds (range): {'; '.join(means)}")
    for name, ratios, target in (("images/s", speeds, ">= 1"), ("seconds to the end, validation included", whole, "<= 1")):
        middle, low, high = statistics.median(ratios), min(ratios), max(ratios)
        print(f"{name}, riftcli / timm's parts, median of the rounds: {middle:.3f} ({low:.3f} to {high:.3f}), target {target}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("weights", type=Path)
    parser.add_argument("data", type=Path)
    for name, default in (("size", 98), ("epochs", 4), ("batch-size", 32), ("workers", 1), ("rounds", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    main(parser.parse_args())
