"""What only a GPU can show, in one command of a few minutes; every line has its target.

python benchmarks/gpu.py                                                    ViT-B/16 at 224 px, batch 128, bf16
python benchmarks/gpu.py --device cpu --model vit_tiny_patch16_224 --size 32 --batch 4 --repeats 2   a rehearsal, without meaning

Weights are random and images are noise: speed does not depend on them. A step is that of the loop: forward, losses, backward,
clipping, the one transfer of health, the optimizer. Interleaved where two are compared; medians.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image

from riftcli import catalog
from riftcli import recipe as recipes
from riftcli.functional.rotations import CarriedRotation, CayleyRotation
from riftcli.methods.objectives.cross_entropy import CrossEntropy
from riftcli.models.classifier import Classifier, frozen_copy
from riftcli.protocols import RegularizerContext
from riftcli.training.compiling import compiled, compiles
from riftcli.training.finetune import finetune
from riftcli.training.optim import build_optimizer, set_lr
from riftcli.training.step import Step

CLASSES = 10


class Bench:
    """The options, a device, and the lines that were measured."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.device = options, torch.device(options.device)
        self.cuda = self.device.type == "cuda"

    def wait(self) -> None:
        """For all that the device was given."""
        if self.cuda:
            torch.cuda.synchronize()

    def seconds(self, *works: Callable[[], Any]) -> list[float]:
        """Median seconds of each, in turn; nothing is waited for within a work."""
        for work in works:
            for _ in range(3):
                work()
        times: list[list[float]] = [[] for _ in works]
        for _ in range(self.options.repeats):
            for work, own in zip(works, times, strict=True):
                self.wait()
                began = time.perf_counter()
                for _ in range(self.options.inner):
                    work()
                self.wait()
                own.append((time.perf_counter() - began) / self.options.inner)
        return [statistics.median(own) for own in times]

    def step(self, name: str, batch: int, compiling: bool | str, **fields: Any) -> Callable[[], None]:
        """One step of the loop, as a function."""
        torch.manual_seed(0)
        vit = timm.create_model(self.options.model, img_size=self.options.size, num_classes=CLASSES).to(self.device)
        dim = vit.num_features
        features = torch.randn(4 * dim, dim)
        config = catalog.component("regularizer", name)(**fields)
        penalty = config.build(RegularizerContext(dim, self.device, lambda: features))
        teacher: Any = Classifier(frozen_copy(vit))
        module: Any = Classifier(vit).train()
        if compiling:
            teacher, module = compiled(teacher), compiled(module, graphs=compiling == "graphs")

        def pretrained(index: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
            with torch.inference_mode(), torch.autocast(self.device.type, torch.bfloat16):
                return teacher(images).features.float()

        images = torch.randn(batch, 3, self.options.size, self.options.size, device=self.device)
        targets = (torch.arange(batch) % CLASSES).to(self.device)
        step = Step(
            module=module,
            objective=CrossEntropy().build(targets.cpu(), CLASSES),
            prepare=lambda x: x,
            device=self.device,
            micro_batch_size=batch,
            penalty=penalty,
            pretrained=pretrained,
            bf16=True,
        )
        optimizer = build_optimizer(vit, step.penalty_parameters(), "adamw", 1e-5, 0.05, fused=True)
        trainable = list(vit.parameters())

        def once() -> None:
            set_lr(optimizer, 1.0)
            optimizer.zero_grad(set_to_none=True)
            result = step({"task": (images, targets, torch.arange(batch))})
            norm = torch.nn.utils.clip_grad_norm_(trainable, 1.0)
            torch.stack([result.task_loss, result.penalty_loss, norm, result.features.var(0).sum()]).tolist()
            optimizer.step()
            if step.carried is not None:
                step.carried.follow()

        return once

    def syncs(self, work: Callable[[], None]) -> int:
        """How often the host waits for the device in one step."""
        work()
        torch.cuda.set_sync_debug_mode("warn")
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            work()
        torch.cuda.set_sync_debug_mode("default")
        return sum("synchroniz" in str(one.message) for one in said)

    def peak(self) -> float:
        """FLOP/s of a large product in bf16."""
        n = 8192 if self.cuda else 256
        a, b = (torch.randn(n, n, device=self.device, dtype=torch.bfloat16) for _ in range(2))
        return 2 * n**3 / self.seconds(lambda: a @ b)[0]


def steps(bench: Bench) -> float:
    """What regularizers cost; returns images a second of FULL."""
    from torch.utils.flop_counter import FlopCounterMode

    batch, compiling = bench.options.batch, compiles("auto", bench.device)
    plain = bench.step("none", batch, False)
    with FlopCounterMode(display=False) as counter:
        plain()
    works = {
        "FULL": bench.step("none", batch, compiling),
        "RIFT, solve": bench.step("rift", batch, compiling, solver="solve"),
        "RIFT, products": bench.step("rift", batch, compiling, solver="products"),
        "RSC": bench.step("rsc", batch, compiling),
    }
    if bench.cuda:
        torch.cuda.reset_peak_memory_stats()
    found = dict(zip(works, bench.seconds(*works.values()), strict=True))
    speed, peak = batch / found["FULL"], bench.peak()
    print(f"FULL: {speed:.0f} images/s (target 3000 on an H200), {counter.get_total_flops() / found['FULL'] / peak:.0%} of "
          f"the measured bf16 peak of {peak / 1e12:.0f} TFLOP/s (or 40 %)")  # fmt: skip
    for name, most in (("RIFT, solve", None), ("RIFT, products", 1.02), ("RSC", 1.30)):
        print(f"{name} / FULL: {found[name] / found['FULL']:.3f}" + ("" if most is None else f", target <= {most}"))
    print(f"FULL, not compiled / compiled: {bench.seconds(plain)[0] / found['FULL']:.3f}")
    if bench.cuda:
        counts = ", ".join(f"{name} {bench.syncs(work)}" for name, work in works.items())
        print(f"waits a step, target <= 1: {counts}")
        print(f"peak memory, five networks with frozen copies, batch {batch}: {torch.cuda.max_memory_allocated() / 1e9:.1f} GB")
    return speed


def graphs(bench: Bench) -> None:
    """Small batches: the host takes longer to start kernels than the device to compute them."""
    if not compiles("auto", bench.device):
        print("CUDA graphs: nothing is compiled here")
        return
    for batch in (4, 16):
        one, other = bench.seconds(bench.step("none", batch, "graphs"), bench.step("none", batch, True))
        print(f"CUDA graphs / compiled alone, batch {batch}: {one / other:.3f}, target < 1")


def rotations(bench: Bench) -> None:
    """The loss of a learned Q alone, forward, backward and (products) the inverse."""
    for dim in (384, 768, 1024):
        rows, works = torch.randn(bench.options.batch, dim, device=bench.device), []
        for rotation in (CarriedRotation(dim).to(bench.device), CayleyRotation(dim).to(bench.device)):

            def once(rotation: Any = rotation, rows: torch.Tensor = rows) -> None:
                rotation.rotate(rows).square().sum().backward()
                if isinstance(rotation, CarriedRotation):
                    rotation.follow()

            works.append(once)
        one, other = bench.seconds(*works)
        print(f"Q by products / by LU, D = {dim}: {one / other:.3f} ({1e3 * one:.2f} / {1e3 * other:.2f} ms), target < 1")


def end_to_end(bench: Bench, synthetic: float) -> None:
    """Whole epochs of `rift finetune` on JPEGs, from a warm store of decoded images, against images that lie on the device."""
    with tempfile.TemporaryDirectory() as folder:
        place, random, size = Path(folder), np.random.default_rng(0), (500, 376) if bench.cuda else (64, 48)
        for i in range(bench.options.images):
            target = place / f"data/train/{i % CLASSES}/{i}.jpg"
            target.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(random.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)).resize(size).save(target)
        options = bench.options
        (place / "r.yaml").write_text(
            recipes.dump(
                {
                    "model": {"name": options.model, "image_size": options.size, "pretrained": False},
                    "data": {"format": "image_folder", "root": str(place / "data"), "val": {"fraction": 0.1}, "test": None},
                    "input": {"cache": str(place / "store")},
                    "augment": {"flip": 0.5, "crop_min_area": 0.35},
                    "regularizer": {"name": "none"},
                    "train": {"epochs": 3, "batch_size": options.batch, "head_init": "normal"},
                    "eval": {"metrics": ["acc"], "best": "acc"},
                }
            )
        )
        for name in ("cold", "warm"):
            report = finetune(recipes.load(str(place / "r.yaml"), []), place / name, device=options.device)
        timing = report["timing"]
        rows = [json.loads(line) for line in (place / "warm/metrics.jsonl").read_text().splitlines()]
        speed = [row["images_per_second"] for row in rows if row["kind"] == "step"][
            -1
        ]  # of the last epoch: compiling is the first's
        print(f"end to end, warm store: {speed:.0f} images/s in the last epoch, "
              f"{speed / synthetic:.3f} of images on the device, target >= 0.95; "
              f"{timing['data_seconds'] / timing['train_seconds']:.1%} of the time waiting for images")  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    for option, default in (("device", "cuda"), ("model", "vit_base_patch16_224")):
        parser.add_argument(f"--{option}", default=default)
    for option, count in (("size", 224), ("batch", 128), ("repeats", 10), ("inner", 10), ("images", 4096)):
        parser.add_argument(f"--{option}", type=int, default=count)
    bench = Bench(parser.parse_args())
    named = torch.cuda.get_device_name() if bench.cuda else "CPU"
    print(f"{named}, torch {torch.__version__}, timm {timm.__version__}; {vars(bench.options)}", flush=True)
    speed = steps(bench)
    graphs(bench)
    rotations(bench)
    end_to_end(bench, speed)
