"""A million files in class folders: seconds to list a split, and bytes of memory a sample.

python benchmarks/listing.py [--files 1000000]
"""

from __future__ import annotations

import argparse
import tempfile
import time
import tracemalloc
from pathlib import Path

from riftcli.data.datasets.image_folder import ImageFolder
from riftcli.data.splits import load_split
from riftcli.recipe.data_sources import SplitSpec

CLASSES = 1000


def main(count: int) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        for c in range(CLASSES):
            folder = Path(scratch, "train", f"n{c:08d}")
            folder.mkdir(parents=True)
            for i in range(count // CLASSES):
                (folder / f"n{c:08d}_{i}.JPEG").touch()
        times = []
        for _ in range(3):
            began = time.process_time()
            split = load_split(ImageFolder(scratch), SplitSpec("train"))
            times.append(time.process_time() - began)
        print(f"listing {len(split):,} files: {sorted(times)[1]:.2f} s, target <= 2")
        del split
        tracemalloc.start()
        split = load_split(ImageFolder(scratch), SplitSpec("train"))
        print(f"memory: {tracemalloc.get_traced_memory()[0] / len(split):.0f} bytes a sample, target <= 150")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--files", type=int, default=1_000_000)
    main(parser.parse_args().files)
