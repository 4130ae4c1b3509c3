"""From one epoch to the next: how long the loop waits for the first batch, and what validation and writing cost beside an epoch.

python benchmarks/turnaround.py            an ImageFolder of 500 x 376 JPEGs with a data worker; then demo_rift, six epochs

Wall time: what is measured is waiting. Keep the machine idle otherwise.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from decode import photographs

from riftcli import cli
from riftcli.data.batches import epoch_batches
from riftcli.data.images import FileReader
from riftcli.data.loader import ImageDataset, train_loader
from riftcli.data.split import Split
from riftcli.data.transforms import Preprocessing, TrainTransform
from riftcli.training import loop, setup

IMAGES, BATCH, EPOCHS, STEP = 256, 64, 4, 0.25  # STEP: seconds that a step of training takes


def batches(epochs: range) -> list[list[tuple[int, int]]]:
    return [[(e, i) for i in batch] for e in epochs for batch in epoch_batches(IMAGES, BATCH, 0, e, 0, 1)]


def first_waits(iterators) -> list[float]:
    """Seconds until the first batch of every epoch but the first; the steps between them take STEP each."""
    waits = []
    for number, iterator in enumerate(iterators):
        for step in range(IMAGES // BATCH):
            began = time.perf_counter()
            next(iterator)
            if step == 0 and number:
                waits.append(time.perf_counter() - began)
            time.sleep(STEP)
    return waits


def workers() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        paths = photographs(Path(scratch), IMAGES, (500, 376))
        targets = torch.zeros(IMAGES, dtype=torch.long).numpy()
        split = Split("train", [str(i) for i in range(IMAGES)], targets, ["a"], FileReader(paths), paths=paths)
        preprocessing = Preprocessing((3, 224, 224), "bicubic", (0.5,) * 3, (0.5,) * 3, 0.9, resize="tensor")
        data = ImageDataset(split, TrainTransform(preprocessing, 0.5, 0.35), seed=0)
        anew = first_waits(train_loader(data, batches(range(e, e + 1)), 1) for e in range(EPOCHS))
        on = train_loader(data, batches(range(EPOCHS)), 1)
        kept = first_waits(on for _ in range(EPOCHS))
        print(
            f"first batch of an epoch: {statistics.median(kept):.3f} s, with workers started anew {statistics.median(anew):.3f} s"
        )


def end_of_epoch() -> None:
    """What happens after the last step of an epoch of demo_rift, beside the forward passes of validation."""
    spent, inside = {"epoch": 0.0, "end": 0.0, "predict": 0.0}, []

    def timed(name: str, real):
        def call(*arguments, **options):
            began = time.perf_counter()
            inside.append(name)
            try:
                return real(*arguments, **options)
            finally:
                inside.pop()
                if name != "predict" or "end" in inside:
                    spent[name] += time.perf_counter() - began

        return call

    loop._epoch, loop._end_epoch = timed("epoch", loop._epoch), timed("end", loop._end_epoch)
    setup.Setup.predict = timed("predict", setup.Setup.predict)
    with tempfile.TemporaryDirectory() as scratch:
        code = cli.run(
            ["finetune", "--recipe", "demo_rift.yaml", "--out", f"{scratch}/r", "--device", "cpu", "--set", "train.epochs=6"]
        )
        if code:
            sys.exit(code)
    work = spent["end"] - spent["predict"]
    print(
        f"demo_rift: end of an epoch without validation's forward passes {work / spent['epoch']:.3f} of its steps "
        f"({1e3 * work / 6:.0f} of {1e3 * spent['epoch'] / 6:.0f} ms), target <= 0.05"
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    workers()
    end_of_epoch()
