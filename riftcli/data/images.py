"""From a file or an array to one RGB image, or to an error that names the file."""

from __future__ import annotations

import contextlib
import functools
import stat
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from riftcli.data.dicom import SUFFIXES, read_dicom
from riftcli.errors import DataError

if TYPE_CHECKING:
    import numpy as np

# By content, whatever a file is called: Pillow would else try all that it knows, and start Ghostscript on an EPS.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
ORIENTATION = 274  # EXIF: torchcodec turns the image by it, and Pillow does not
MOST_ASPECT = 100  # of the longer side to the shorter: resizing 1 x 1,000,000 to a shorter side of 224 takes 150 GB
EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm", *SUFFIXES)


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


def open_image(path: Path) -> Image.Image:
    """An image file, not decoded yet, in one of FORMATS and no longer than a picture is; raise OSError or DataError."""
    if not stat.S_ISREG(path.stat().st_mode):  # a FIFO would be waited for
        raise DataError(f"{path}: not a file; take it out of the split")
    image = Image.open(path, formats=FORMATS)
    short, long = sorted(image.size)
    if long > MOST_ASPECT * short:
        image.close()
        size = f"{image.width} x {image.height} pixels"
        raise DataError(f"{path}: {size}, more than {MOST_ASPECT} times as long as wide; crop it, or take it out of the split")
    return image


def read_image(path: Path, bit_depth: int | None = None, at_least: int | None = None) -> Image.Image:
    """Decode one file completely, as RGB; raise DataError naming it. (Pillow's verify() passes a truncated JPEG.)

    at_least: let a JPEG decoder shrink the image by 2, 4 or 8 while the shorter side keeps so many pixels (draft mode).
    """
    return _read(path, bit_depth, at_least, None)


@functools.cache
def jpeg_decoder() -> Callable[[bytes], Any] | None:
    """bytes -> uint8 (3, H, W), by torchcodec (extra `decode`), to the bit as Pillow does it; None where there is none."""
    try:
        from torchcodec.decoders import decode_jpeg
    except Exception:  # not installed, or made for another torch: in as many ways as a shared library can be wrong
        return None
    return decode_jpeg


def _read(path: Path, bit_depth: int | None, at_least: int | None, decode: Callable[[bytes], Any] | None) -> Any:
    """decode: of JPEGs, in place of Pillow, which still looks at their size, and at all that this cannot decode."""
    if path.suffix.lower() in SUFFIXES:
        if not path.is_file():
            raise DataError(f"{path}: image not found")
        return read_dicom(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with open_image(path) as image:
                if decode is not None and image.format == "JPEG" and image.getexif().get(ORIENTATION, 1) == 1:
                    with contextlib.suppress(RuntimeError, ValueError):  # Pillow says what is wrong with it
                        return decode(path.read_bytes())
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
    """Reads image i of a list of paths; picklable, for data workers. tensors: `pixels` may be decoded without Pillow."""

    def __init__(
        self, paths: Sequence[Path], bit_depth: int | None = None, at_least: int | None = None, tensors: bool = False
    ) -> None:
        self.paths, self.bit_depth, self.at_least, self.tensors = paths, bit_depth, at_least, tensors

    def __call__(self, i: int) -> Image.Image:  # noqa: D102
        return read_image(self.paths[i], self.bit_depth, self.at_least)

    def pixels(self, i: int) -> Any:
        """An image, or uint8 (3, H, W)."""
        decode = jpeg_decoder() if self.tensors and self.at_least is None else None
        return _read(self.paths[i], self.bit_depth, self.at_least, decode)


class ArrayReader:
    """Reads image i of an in-memory (N, H, W) or (N, H, W, 3) uint8 array."""

    def __init__(self, images: np.ndarray) -> None:
        self.images = images

    def __call__(self, i: int) -> Image.Image:  # noqa: D102
        return Image.fromarray(self.images[i]).convert("RGB")

    def pixels(self, i: int) -> np.ndarray:
        """uint8 (H, W, 3)."""
        image = self.images[i]
        return image if image.ndim == 3 else image[:, :, None].repeat(3, 2)
