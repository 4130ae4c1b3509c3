"""From a file or an array to one RGB image, or to an error that names the file."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from riftcli.errors import DataError, Problems, nearest

if TYPE_CHECKING:
    import numpy as np

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm")


def to_rgb(image: Image.Image, name: str, bit_depth: int | None = None) -> Image.Image:
    """Convert to 8-bit RGB; refuse bit depths that a plain conversion would clip to white.

    Grey is replicated, a palette resolved, alpha dropped. Pillow clips 16-bit grey at 255: most of a 12-bit scan turns
    white without a word, so it is an error until `bit_depth` says how many bits carry the picture.
    """
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        if image.mode == "F" or bit_depth is None:
            remedy = "say how many bits are used with --set input.bit_depth=12 (up to 16), or rescale them with a window"
            raise DataError(
                f"{name}: {image.mode} pixels (16 or 32 bits): a conversion to 8 bits would clip them; "
                + (remedy if image.mode != "F" else "rescale the images to 8 bits first")
            )
        return _scaled(image, name, bit_depth).convert("RGB")
    return image.convert("RGB")


def _scaled(image: Image.Image, name: str, bit_depth: int) -> Image.Image:
    """0 .. 2^bit_depth - 1 as 0 .. 255."""
    import numpy as np

    values, top = np.asarray(image).astype("int64"), 2**bit_depth - 1
    if values.min() < 0 or values.max() > top:
        raise DataError(
            f"{name}: pixel values from {values.min()} to {values.max()} do not fit input.bit_depth {bit_depth} (0..{top}); "
            "set the depth that they have"
        )
    return Image.fromarray(((values * 255 + top // 2) // top).astype("uint8"))


def read_image(path: Path, bit_depth: int | None = None, at_least: int | None = None) -> Image.Image:
    """Decode one file completely, as RGB; raise DataError naming it. (Pillow's verify() passes a truncated JPEG.)

    at_least: let a JPEG decoder shrink the image by 2, 4 or 8 while the shorter side keeps so many pixels (draft mode).
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                if at_least is not None:
                    image.draft(None, (at_least, at_least))
                return to_rgb(image, str(path), bit_depth)
    except FileNotFoundError:
        raise DataError(f"{path}: image not found") from None
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise DataError(f"{path}: more than {Image.MAX_IMAGE_PIXELS:,} pixels; downscale it first") from None
    except (OSError, SyntaxError, ValueError) as error:
        size = path.stat().st_size
        reason = "the file is empty" if size == 0 else str(error)
        raise DataError(f"{path}: unreadable image ({reason}); replace it or take it out of the split") from error


class FileReader:
    """Reads image i of a list of paths; picklable, for data workers."""

    def __init__(self, paths: list[Path], bit_depth: int | None = None, at_least: int | None = None) -> None:
        self.paths, self.bit_depth, self.at_least = paths, bit_depth, at_least

    def __call__(self, i: int) -> Image.Image:  # noqa: D102
        return read_image(self.paths[i], self.bit_depth, self.at_least)


class ArrayReader:
    """Reads image i of an in-memory (N, H, W) or (N, H, W, 3) uint8 array."""

    def __init__(self, images: np.ndarray) -> None:
        self.images = images

    def __call__(self, i: int) -> Image.Image:  # noqa: D102
        return Image.fromarray(self.images[i]).convert("RGB")


def check_exist(paths: list[Path]) -> None:
    """Raise DataError naming the files that are missing or links to nowhere."""
    problems = Problems()
    for path in paths:
        if not path.is_file():
            what = "a link to nowhere" if path.is_symlink() else "image not found"
            problems.add(f"{path}: {what}; fetch it again or take it out of the list")
    problems.raise_if_any()


def check_no_loose_images(folder: Path, remedy: str) -> None:
    """Raise DataError for images beside class folders, which would otherwise be ignored without a word."""
    loose = sorted(p.name for p in folder.iterdir() if p.suffix.lower() in EXTENSIONS and p.is_file() and p.name[0] != ".")
    if loose:
        raise DataError(f"{folder}: {len(loose)} images lie beside the class folders (e.g. {loose[0]}); {remedy}")


def existing_root(root: str) -> Path:
    """The data folder, `~` expanded; raise DataError when it is missing."""
    path = Path(root).expanduser()
    if not path.exists():
        raise DataError(f"{root}: no such data folder (looked in {Path.cwd()}); set root, e.g. --set data.root=/path/to/data")
    if not path.is_dir():
        raise DataError(f"{root}: the data root is not a folder")
    return path


def check_split(source: str, split: str, valid: list[str]) -> None:
    """Raise DataError for a split that the source does not have."""
    if split not in valid:
        raise DataError(f"{source}: no split '{split}'{nearest(split, valid)}; it has: {', '.join(valid) or 'none'}")
