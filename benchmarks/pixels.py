"""Images a second and core into a training loop's tensors: ours, by tensors and by Pillow, against a plain torchvision v2 loader
and against timm's own.

python benchmarks/pixels.py [--images 64]

One process, one thread; 500 x 376 JPEGs to 224 px, random crop and flip; decoded, kept in memory from the epoch before, and from
the store of decoded images.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from decode import photographs
from paired import ratio
from timm.data import create_transform
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from riftcli.data.image_store import Decoding, ImageStore
from riftcli.data.images import FileReader, read_image
from riftcli.data.kept_images import KeepingReader, KeptImages
from riftcli.data.loader import ImageDataset, train_loader
from riftcli.data.reading import needed_short_side
from riftcli.data.split import Split
from riftcli.data.transforms import Preprocessing, Resize, TrainTransform
from riftcli.recipe.image_sections import AugmentSection

SIZE, AREA, BATCH = (500, 376), 0.35, 32
PREPROCESSING = Preprocessing((3, 224, 224), "bicubic", (0.5,) * 3, (0.5,) * 3, 0.9)


class Plain(Dataset):
    """Files through a transform, as the tutorials have it."""

    def __init__(self, paths: list[Path], transform) -> None:
        self.paths, self.transform = paths, transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> torch.Tensor:
        return self.transform(read_image(self.paths[i]))


def ours(split: Split, resize: Resize):
    """An epoch of uint8 batches, as the loop gets them."""
    transform = TrainTransform(replace(PREPROCESSING, resize=resize), 0.5, AREA)
    data = ImageDataset(split, transform, seed=0)
    batches = [[(0, i) for i in range(start, start + BATCH)] for start in range(0, len(split), BATCH)]

    def epoch() -> None:
        for _ in train_loader(data, batches, 0):
            pass

    return epoch


def others(paths: list[Path], transform):
    """An epoch of the same files through a loader of torch's and another transform."""

    def epoch() -> None:
        for _ in DataLoader(Plain(paths, transform), batch_size=BATCH, shuffle=True):
            pass

    return epoch


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=64)
    count = parser.parse_args().images
    torch.set_num_threads(1)
    bicubic = v2.InterpolationMode.BICUBIC
    plain_v2 = v2.Compose(
        [
            v2.RandomResizedCrop(224, scale=(AREA, 1.0), interpolation=bicubic),
            v2.RandomHorizontalFlip(0.5),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize((0.5,) * 3, (0.5,) * 3),
        ]
    )
    timm_s = create_transform(224, is_training=True, scale=(AREA, 1.0), hflip=0.5, color_jitter=None, interpolation="bicubic")
    with tempfile.TemporaryDirectory() as scratch:
        paths = photographs(Path(scratch), count, SIZE)
        targets = torch.zeros(count, dtype=torch.long).numpy()
        files = Split("train", [str(i) for i in range(count)], targets, ["a"], FileReader(paths, tensors=True), paths=paths)
        short = needed_short_side(PREPROCESSING, AugmentSection(crop_min_area=AREA))
        stores = {
            resize: ImageStore(f"{scratch}/cache", Decoding(short, resize=resize)).reader(paths) for resize in ("tensor", "pil")
        }
        kept = Split("train", files.ids, targets, ["a"], KeepingReader(files.read, KeptImages(count, 10**10, 0)), paths=paths)
        stored = {resize: Split("train", files.ids, targets, ["a"], reader) for resize, reader in stores.items()}
        print(f"{count} JPEGs of {SIZE[0]} x {SIZE[1]}, to 224 px; stored with a shorter side of {short} px")
        pairs = {
            "decoded, tensor / pil": (ours(files, "tensor"), ours(files, "pil"), 0.5),
            "stored, tensor / pil": (ours(stored["tensor"], "tensor"), ours(stored["pil"], "pil"), 0.5),
            "decoded, tensor / a plain torchvision v2 loader": (ours(files, "tensor"), others(paths, plain_v2), 0.5),
            "decoded, tensor / timm's transform": (ours(files, "tensor"), others(paths, timm_s), 0.5),
            "kept in memory, tensor / decoded, pil": (ours(kept, "tensor"), ours(files, "pil"), 0.5),
            "kept in memory, tensor / timm's transform": (ours(kept, "tensor"), others(paths, timm_s), 0.5),
            "stored, tensor / timm's transform on files": (ours(stored["tensor"], "tensor"), others(paths, timm_s), 0.5),
        }
        for name, (one, other, target) in pairs.items():
            ratio(name, one, other, target, pairs=12)
