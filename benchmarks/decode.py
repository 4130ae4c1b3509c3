"""C9: an epoch of 12-megapixel JPEGs into a training loop's tensors: draft mode and the warm store against a full decode.

python benchmarks/decode.py [--images 12]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
from paired import ratio
from PIL import Image
from scipy.ndimage import zoom

from riftcli.data.image_store import Decoding, ImageStore
from riftcli.data.images import FileReader
from riftcli.data.reading import needed_short_side
from riftcli.data.transforms import EvalTransform, Preprocessing

SIZE = (4000, 3000)


def photographs(folder: Path, count: int, size: tuple[int, int] = SIZE) -> list[Path]:
    """JPEGs with structure at several scales, about as large as a camera's."""
    rng = np.random.default_rng(0)
    paths = []
    for i in range(count):
        coarse = zoom(rng.normal(size=(30, 40, 3)), (size[1] / 30, size[0] / 40, 1), order=1)
        fine = zoom(rng.normal(size=(size[1] // 4, size[0] // 4, 3)), (4, 4, 1), order=1)
        pixels = np.clip(127 + 45 * coarse + 12 * fine, 0, 255).astype("uint8")
        paths.append(folder / f"{i}.jpg")
        Image.fromarray(pixels).save(paths[-1], quality=90)
    return paths


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=6)
    count = parser.parse_args().images
    preprocessing = Preprocessing((3, 224, 224), "bicubic", (0.5,) * 3, (0.5,) * 3, 0.9)
    transform, short = EvalTransform(preprocessing), needed_short_side(preprocessing)
    with tempfile.TemporaryDirectory() as scratch:
        paths = photographs(Path(scratch), count)
        print(f"{count} JPEGs of {SIZE[0]} x {SIZE[1]}, {paths[0].stat().st_size / 1e6:.1f} MB each, to 224 px")
        full, draft = FileReader(paths), FileReader(paths, at_least=short)
        stored = ImageStore(f"{scratch}/cache", Decoding(short, draft=True)).reader(paths)

        def epoch(read) -> None:
            for i in range(count):
                transform(read(i))

        ratio("C9 draft mode / full decode", lambda: epoch(draft), lambda: epoch(full), target=0.25, pairs=12)
        ratio("C9 warm store / full decode", lambda: epoch(stored), lambda: epoch(full), target=0.02, pairs=12)
        difference = np.abs(np.asarray(transform(draft(0)), dtype=int) - np.asarray(transform(full(0)))).mean()
        print(f"mean difference of a pixel, draft against full: {difference:.2f} of 255")
