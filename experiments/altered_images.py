"""Fashion-MNIST test images under other conditions: inverted, blurred, as edges. The shifted sets of the study fashion_clip.

python experiments/altered_images.py ROOT OUT [--limit 500]
    ROOT: what torchvision's FashionMNIST reads (download=False). The images are those of the recipe's test split. Writes
    OUT/{inverted,blurred,edges}/images and labels.csv.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

from PIL import Image, ImageFilter, ImageOps

WAYS = {
    "inverted": ImageOps.invert,
    "blurred": lambda image: image.filter(ImageFilter.GaussianBlur(1.5)),
    "edges": lambda image: image.filter(ImageFilter.FIND_EDGES),
}


def write_sets(root: Path, out: Path, limit: int) -> None:
    """`limit` test images, as `data.test: {from: test, limit: ...}` draws them, each in three ways, with their class names."""
    from riftcli.data.datasets.torchvision import Torchvision
    from riftcli.data.splits import load_split
    from riftcli.recipe.data_sources import SplitSpec

    split = load_split(Torchvision("FashionMNIST", str(root)), SplitSpec("test", limit=limit))
    for name, change in WAYS.items():
        folder = out / name / "images"
        folder.mkdir(parents=True, exist_ok=True)
        with (out / name / "labels.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["image", "label"])
            for i in range(len(split)):
                image: Image.Image = change(split.read(i).convert("L"))
                image.save(folder / f"{i:05d}.png")
                writer.writerow([f"{i:05d}.png", split.classes[split.targets[i]]])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--limit", type=int, default=500)
    given = parser.parse_args()
    write_sets(given.root, given.out, given.limit)
