"""DICOM files as pictures (extra `dicom`, pydicom), as a viewer shows them first; and the groups that their headers name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from riftcli.errors import DataError, EnvironmentError

if TYPE_CHECKING:
    import numpy as np

SUFFIXES = (".dcm", ".dicom")
GROUPS = {"patient": "PatientID", "study": "StudyInstanceUID"}  # what a header can group images by


def read_dicom(path: Path) -> Image.Image:
    """One frame as 8-bit RGB or grey, as a viewer shows it first; raise DataError, or EnvironmentError without a decoder.

    Stored values -> modality LUT (rescale) -> VOI LUT or window of the header (else the range of the values) -> 0..255;
    MONOCHROME1 is inverted, YBR and palette colours become RGB (DICOM PS3.3 C.11, PS3.4 N.2).
    """
    dicom = _pydicom(path)
    from pydicom.pixels import apply_color_lut, pixel_array

    try:
        header = dicom.dcmread(path)
        if int(header.get("NumberOfFrames") or 1) > 1:
            raise DataError(f"{path}: {header.NumberOfFrames} frames in one file; export the frame that is to be classified")
        _check_size(path, int(header.Columns), int(header.Rows))
        values = pixel_array(header, as_rgb=True)  # YBR becomes RGB
        kind = str(header.get("PhotometricInterpretation", ""))
        if kind == "PALETTE COLOR":
            colours = apply_color_lut(values, header)
            return Image.fromarray((colours >> 8).astype("uint8") if colours.dtype.name == "uint16" else colours).convert("RGB")
        if values.ndim == 3:
            full = 2 ** int(header.BitsStored) - 1
            return Image.fromarray(values if values.dtype.name == "uint8" else _to_8_bits(values, 0, full)).convert("RGB")
        grey = _to_8_bits(*_shown(values, header))
        return Image.fromarray(255 - grey if kind == "MONOCHROME1" else grey).convert("RGB")
    except DataError:
        raise
    except Exception as error:  # pydicom raises nearly every kind for a damaged file, or one it cannot decompress
        if "missing dependencies" in str(error):
            raise EnvironmentError(
                f"{path}: compressed as {header.file_meta.TransferSyntaxUID.name}, for which there is no decoder here: "
                "pip install pylibjpeg pylibjpeg-libjpeg pylibjpeg-openjpeg"
            ) from error
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{path}: unreadable DICOM file ({text[:200]}); replace it or take it out of the split") from error


def _check_size(path: Path, width: int, height: int) -> None:
    """Raise DataError for more pixels than an image may have: a compressed frame says how many it becomes."""
    if Image.MAX_IMAGE_PIXELS is not None and width * height > Image.MAX_IMAGE_PIXELS:
        raise DataError(f"{path}: {width} x {height}, more than {Image.MAX_IMAGE_PIXELS:,} pixels; downscale it first")


def _shown(values: np.ndarray, header: Any) -> tuple[np.ndarray, float, float]:
    """(grey values as the header says to show them, the value that is black, the one that is white)."""
    import numpy as np
    from pydicom.pixels import apply_modality_lut, apply_voi_lut

    rescaled = apply_modality_lut(values, header)
    if header.get("VOILUTSequence"):
        bits = int(header.VOILUTSequence[0].LUTDescriptor[2])
        return apply_voi_lut(rescaled, header), 0.0, 2.0**bits - 1
    if header.get("WindowWidth") is not None:
        # two values far outside become the ends of the window, whatever scale pydicom puts it on
        ends = np.array([-1e12, 1e12])
        found = apply_voi_lut(np.concatenate([rescaled.astype("float64").ravel(), ends]), header)
        return found[:-2].reshape(rescaled.shape), float(found[-2]), float(found[-1])
    return rescaled, float(rescaled.min()), float(rescaled.max())


def _to_8_bits(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """low..high as 0..255."""
    import numpy as np

    return np.rint((values.astype("float64") - low) / max(high - low, 1e-12) * 255).clip(0, 255).astype("uint8")


def header_group(path: Path, column: str) -> str:
    """The patient or study of a file, from its header alone; raise DataError."""
    dicom = _pydicom(path)
    tag = GROUPS[column]
    try:
        value = str(dicom.dcmread(path, stop_before_pixels=True, specific_tags=[tag]).get(tag, "")).strip()
    except Exception as error:
        raise DataError(f"{path}: unreadable DICOM header ({error}); replace it or take it out of the split") from error
    if not value:
        raise DataError(f"{path}: its header has no {tag}, which data.group_by {column} needs; use another group_by")
    return value


def _pydicom(path: Path) -> Any:
    try:
        import pydicom
    except ImportError:
        raise EnvironmentError(f"{path}: DICOM files need the extra dicom: pip install 'riftcli[dicom]'") from None
    return pydicom
