"""DICOM files against what their header says by hand: rescale, window, inversion, colour; groups; what cannot be read."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from riftcli.data.datasets.image_folder import ImageFolder
from riftcli.data.dicom import header_group
from riftcli.data.images import read_image
from riftcli.data.inspection import inspect_file
from riftcli.data.splits import load_splits
from riftcli.errors import DataError, EnvironmentError
from riftcli.recipe.data_sources import SplitSpec

pydicom = pytest.importorskip("pydicom")


def scan(path: Path, pixels: np.ndarray, kind: str = "MONOCHROME2", **tags) -> Path:
    """A small uncompressed DICOM file."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

    path.parent.mkdir(parents=True, exist_ok=True)
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    data.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    data.SOPClassUID, data.SOPInstanceUID = SecondaryCaptureImageStorage, data.file_meta.MediaStorageSOPInstanceUID
    data.PhotometricInterpretation = kind
    data.SamplesPerPixel = 3 if pixels.ndim == 3 else 1
    if pixels.ndim == 3:
        data.PlanarConfiguration = 0
    data.Rows, data.Columns = pixels.shape[:2]
    data.BitsAllocated = 8 * pixels.dtype.itemsize
    data.BitsStored = tags.pop("BitsStored", data.BitsAllocated)
    data.HighBit, data.PixelRepresentation = data.BitsStored - 1, int(pixels.dtype.kind == "i")
    for name, value in tags.items():
        setattr(data, name, value)
    data.PixelData = pixels.tobytes()
    data.save_as(path, enforce_file_format=True)
    return path


@pytest.fixture
def stored() -> np.ndarray:
    return np.random.default_rng(0).integers(-1000, 2000, (12, 16)).astype("int16")


def grey(path: Path) -> np.ndarray:
    image = read_image(path)
    assert image.mode == "RGB"
    values = np.asarray(image)
    assert (values == values[..., :1]).all()
    return values[..., 0].astype(int)


def test_rescale_and_window_as_the_standard_says(tmp_path, stored):
    """PS3.3 C.11.2.1.2.1, the LINEAR function: ((x - (c - 0.5)) / (w - 1) + 0.5) * (ymax - ymin) + ymin, clipped."""
    path = scan(
        tmp_path / "ct.dcm", stored, RescaleSlope=2, RescaleIntercept=-24, WindowCenter=40, WindowWidth=400, RescaleType="HU"
    )
    hu = stored.astype(float) * 2 - 24
    expected = np.clip((hu - (40 - 0.5)) / (400 - 1) + 0.5, 0, 1) * 255
    assert np.abs(grey(path) - expected).max() <= 0.5 + 1e-6


def test_an_image_that_does_not_reach_the_ends_of_its_window_is_not_stretched(tmp_path):
    pixels = np.full((8, 8), 90, dtype="uint16")
    pixels[0] = 110
    found = grey(scan(tmp_path / "flat.dcm", pixels, WindowCenter=100, WindowWidth=201, BitsStored=12))
    assert found[1:].tolist() == [[115] * 8] * 7  # (90 - 99.5) / 200 + 0.5 = 0.4525
    assert found[0].tolist() == [141] * 8  # 0.5525


def test_without_a_window_the_range_of_the_values_is_shown(tmp_path, stored):
    found = grey(scan(tmp_path / "raw.dcm", stored))
    low, high = stored.min(), stored.max()
    assert np.abs(found - (stored.astype(float) - low) / (high - low) * 255).max() <= 0.5 + 1e-6
    inverted = grey(scan(tmp_path / "one.dcm", stored, "MONOCHROME1"))
    assert (inverted == 255 - found).all()


def test_colour(tmp_path):
    rgb = np.random.default_rng(1).integers(0, 256, (6, 5, 3)).astype("uint8")
    assert (np.asarray(read_image(scan(tmp_path / "rgb.dcm", rgb, "RGB"))) == rgb).all()
    ybr = np.full((6, 5, 3), (76, 85, 255), dtype="uint8")  # red, by ITU-R BT.601
    found = np.asarray(read_image(scan(tmp_path / "ybr.dcm", ybr, "YBR_FULL")))
    assert np.abs(found[0, 0].astype(int) - (255, 0, 0)).max() <= 2


def test_patients_of_a_folder_stay_whole(tmp_path, stored):
    for i in range(24):
        scan(tmp_path / "scans" / f"{'ab'[i % 2]}" / f"{i}.dcm", stored + i, PatientID=f"p{i // 3}", StudyInstanceUID=f"1.2.{i}")
    source = ImageFolder(str(tmp_path / "scans"), group_by="patient")
    part = SplitSpec("all", fraction=0.25, group="patient")
    splits = load_splits(source, SplitSpec("all"), part, part)
    owners = [set(split.groups["patient"]) for split in splits.named().values()]
    assert sum(map(len, owners)) == len(set.union(*owners)) == 8
    assert len(set(ImageFolder(str(tmp_path / "scans"), group_by="study").load("all").groups["study"])) == 24
    seen = inspect_file(None, tmp_path / "scans" / "a" / "0.dcm")
    assert (seen.mode, seen.width, seen.height, seen.problem) == ("DICOM", 16, 12, None)


@pytest.mark.parametrize(
    ("how", "files", "expected"),
    [
        ("folder", ["a/s1/1.png", "a/s1/x/2.png", "b/s2/1.png"], ["s1", "s1", "s2"]),
        ("name", ["a/S1_12_7.png", "a/S1_12_8.png", "b/S2-x3-y4.png"], ["S1", "S1", "S2"]),
        ("name", ["a/1.png", "b/2.png"], ["1", "2"]),
    ],
)
def test_groups_by_where_files_lie_and_what_they_are_called(tmp_path, how, files, expected):
    from PIL import Image

    for file in files:
        (tmp_path / "data" / file).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(tmp_path / "data" / file)
    assert ImageFolder(str(tmp_path / "data"), group_by=how).load("all").groups == {how: expected}


def test_what_cannot_be_read_is_one_line(tmp_path, stored, monkeypatch):
    many = scan(tmp_path / "many.dcm", np.zeros((8, 4), dtype="uint8"), NumberOfFrames=2, Rows=4)
    with pytest.raises(DataError) as caught:
        read_image(many)
    assert str(caught.value) == f"{many}: 2 frames in one file; export the frame that is to be classified"
    (tmp_path / "no.dcm").write_bytes(b"no DICOM at all")
    with pytest.raises(DataError) as caught:
        read_image(tmp_path / "no.dcm")
    assert str(caught.value).startswith(f"{tmp_path}/no.dcm: unreadable DICOM file (")
    cut = scan(tmp_path / "cut.dcm", stored)
    cut.write_bytes(cut.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"cut.dcm: unreadable DICOM file \("):
        read_image(cut)
    with pytest.raises(DataError) as caught:
        header_group(scan(tmp_path / "nobody.dcm", stored), "patient")
    assert str(caught.value) == (
        f"{tmp_path}/nobody.dcm: its header has no PatientID, which data.group_by patient needs; use another group_by"
    )
    with pytest.raises(DataError) as caught:
        read_image(tmp_path / "gone.dcm")
    assert str(caught.value) == f"{tmp_path}/gone.dcm: image not found"
    from pydicom.encaps import encapsulate
    from pydicom.uid import JPEGLSLossless

    packed = pydicom.dcmread(scan(tmp_path / "packed.dcm", stored))
    packed.file_meta.TransferSyntaxUID = JPEGLSLossless
    packed.PixelData = encapsulate([b"x" * 10])
    packed.save_as(tmp_path / "packed.dcm")
    with pytest.raises(EnvironmentError, match="packed.dcm: compressed as JPEG-LS Lossless.*: pip install pylibjpeg"):
        read_image(tmp_path / "packed.dcm")
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(EnvironmentError) as caught:
        read_image(many)
    assert str(caught.value) == f"{many}: DICOM files need the extra dicom: pip install 'riftcli[dicom]'"
