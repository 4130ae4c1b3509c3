"""Data sources, splits and images; a whole-message assertion for every bad input."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from dataset_copies import pets
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from riftcli.data.classes import class_counts
from riftcli.data.datasets.csv_table import CsvTable
from riftcli.data.datasets.demo_fashion import DemoFashion
from riftcli.data.datasets.digits import Digits
from riftcli.data.datasets.image_folder import ImageFolder
from riftcli.data.datasets.torchvision import Torchvision
from riftcli.data.holdout import hold_out, limit
from riftcli.data.images import read_image
from riftcli.data.splits import fingerprint, load_retention, load_split, load_splits
from riftcli.errors import DataError
from riftcli.recipe.data_sources import SplitRules, SplitSpec


def refused(call, *arguments) -> str:
    with pytest.raises(DataError) as caught:
        call(*arguments)
    return str(caught.value)


def picture(path: Path, value: int = 100, size: tuple[int, int] = (12, 10), mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value if mode in ("L", "I;16") else (value,) * 3).save(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "pets"
    for split, count in (("train", 4), ("test", 2)):
        for label in ("cat", "dog"):
            for i in range(count):
                picture(root / split / label / "deep" / f"{split}{i}.png", 10 * i)
    picture(root / "train" / ".ipynb_checkpoints" / "x.png")
    (root / "train" / "__MACOSX").mkdir()
    (root / "train" / "cat" / "notes.txt").write_text("not an image")
    return root


# ---- sources


def test_digits():
    train, test = Digits().load("train"), Digits().load("test")
    assert (len(train), len(test)) == (1297, 500)
    assert not set(train.ids) & set(test.ids)
    bunch = load_digits()
    _, expected = train_test_split(np.arange(len(bunch.target)), test_size=500, random_state=0, stratify=bunch.target)
    assert test.ids == [f"digits-{i:04d}" for i in sorted(expected)], "as it was when scikit-learn cut it"
    for split in (train, test):
        numbers = [int(name.removeprefix("digits-")) for name in split.ids]
        assert split.targets.dtype == np.int64 and np.array_equal(split.targets, bunch.target[numbers])
        pixels = np.stack([np.asarray(split.read(i))[:, :, 0] for i in range(len(split))])
        assert np.array_equal(pixels, (bunch.images[numbers] * (255 / 16)).round())
    image = train.read(0)
    assert (image.size, image.mode) == ((8, 8), "RGB")
    assert np.asarray(image).max() == 239  # 15 of 16 grey levels
    assert refused(Digits().load, "trian") == "digits: no split 'trian' (did you mean 'train'?); it has: train, test"


def test_demo_fashion():
    split = DemoFashion().load("test")
    assert class_counts(split) == dict.fromkeys(split.classes, 100)
    assert split.read(0).size == (28, 28)


def test_image_folder(folder):
    split = ImageFolder(str(folder)).load("train")
    assert split.classes == ["cat", "dog"]
    assert split.ids[0] == "train/cat/deep/train0.png"
    assert split.targets.tolist() == [0] * 4 + [1] * 4
    assert split.read(1).getpixel((0, 0)) == (10, 10, 10)


def test_image_folder_bad_inputs(folder, tmp_path):
    assert refused(ImageFolder(str(tmp_path / "nowhere")).load, "train") == (
        f"{tmp_path}/nowhere: no such data folder (looked in {Path.cwd()}); set root, e.g. --set data.root=/path/to/data"
    )
    assert (
        refused(ImageFolder(str(picture(tmp_path / "file.png"))).load, "train")
        == f"{tmp_path}/file.png: the data root is not a folder"
    )
    assert refused(ImageFolder(str(folder)).load, "val") == (
        f"image_folder {folder}: no split 'val'; it has: test, train; "
        "or cut it from the training split: --set 'data.val={fraction: 0.2}'"
    )
    (folder / "train" / "emu").mkdir()
    assert refused(ImageFolder(str(folder)).load, "train") == (
        f"{folder}/train/emu: class folder without images (.jpg, .jpeg, .png, .bmp, .tif, .tiff, .webp, .ppm, .pgm, "
        ".dcm, .dicom); fill it or remove it"
    )
    picture(folder / "flat" / "a.png")
    assert refused(ImageFolder(str(folder)).load, "flat") == (
        f"{folder}/flat: no class folders but 1 loose images; expected {folder}/flat/<class>/<image>, or use data.format "
        "csv_table with a label file"
    )


def test_torchvision_reads_its_own_layout_and_names_what_is_missing(tmp_path):
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for stem, count in (("train", 5), ("t10k", 3)):
        images = rng.integers(0, 255, (count, 28, 28), dtype=np.uint8)
        header = b"".join(n.to_bytes(4, "big") for n in (2051, count, 28, 28))
        (raw / f"{stem}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        labels = np.arange(count, dtype=np.uint8)
        (raw / f"{stem}-labels-idx1-ubyte").write_bytes(b"".join(n.to_bytes(4, "big") for n in (2049, count)) + labels.tobytes())
        if stem == "train":
            expected = images[2]
    split = Torchvision("FashionMNIST", root=str(tmp_path)).load("train")
    assert len(split) == 5
    assert split.classes[9] == "Ankle boot"
    assert (np.asarray(split.read(2))[..., 0] == expected).all()
    assert len(Torchvision("FashionMNIST", root=str(tmp_path)).load("test")) == 3
    assert refused(Torchvision("MNIST", root=str(tmp_path)).load, "test") == (
        f"torchvision MNIST in {tmp_path}: Dataset not found. You can use download=True to download it; check data.root, "
        "or --set data.download=true on a machine with a network"
    )
    (tmp_path / "MNIST/raw").mkdir(parents=True)
    (tmp_path / "MNIST/raw/t10k-images-idx3-ubyte.gz").write_bytes(b"packed")
    assert refused(Torchvision("MNIST", root=str(tmp_path)).load, "test") == (
        f"{tmp_path}/MNIST/raw: its files are still packed; unpack them there: gunzip --keep *.gz"
    )
    (tmp_path / "MNIST/raw/t10k-images-idx3-ubyte").write_bytes(b"unpacked beside it: something else is wrong")
    assert "still packed" not in refused(Torchvision("MNIST", root=str(tmp_path)).load, "test")
    with pytest.raises(ValueError, match="name: unknown data set \\(did you mean 'CIFAR100'\\?\\)"):
        Torchvision("CIFAR-100")


def test_torchvision_sets_without_a_targets_attribute(tmp_path, monkeypatch):
    """SVHN keeps `labels` and has no class names; Flowers102 keeps `_labels`."""
    from scipy.io import savemat
    from torchvision.datasets import flowers102, svhn

    monkeypatch.setattr(svhn, "check_integrity", lambda *a: True)
    pixels = np.random.default_rng(0).integers(0, 255, (32, 32, 3, 4), dtype=np.uint8)
    savemat(tmp_path / "train_32x32.mat", {"X": pixels, "y": np.array([[1], [10], [3], [1]])})
    split = Torchvision("SVHN", root=str(tmp_path)).load("train")
    assert split.targets.tolist() == [1, 0, 3, 1], "label 10 is the digit 0"
    assert split.classes == ["0", "1", "2", "3"]
    assert split.read(1).size == (32, 32)

    monkeypatch.setattr(flowers102, "check_integrity", lambda *a, **k: True)
    base = tmp_path / "flowers-102"
    for i in (1, 2, 3):
        picture(base / "jpg" / f"image_{i:05d}.jpg", 10 * i)
    savemat(base / "imagelabels.mat", {"labels": np.array([1, 2, 1])})
    savemat(base / "setid.mat", {"trnid": np.array([1, 3]), "valid": np.array([2, 2]), "tstid": np.array([2, 3])})
    split = Torchvision("Flowers102", root=str(tmp_path)).load("train")
    assert split.targets.tolist() == [0, 0]
    assert split.read(1).getpixel((0, 0)) == (30, 30, 30)
    (base / "jpg" / "image_00003.jpg").write_bytes(b"")
    assert refused(split.read, 1) == (
        f"{base}/jpg/image_00003.jpg: unreadable image (the file is empty); replace it or take it out of the split"
    )
    assert split.ids == ["flowers-102/jpg/image_00001.jpg", "flowers-102/jpg/image_00003.jpg"]


def test_retention_banks_do_not_hold_their_queries(folder):
    source = ImageFolder(str(folder))
    query, bank = load_retention(source, SplitSpec("train"), SplitSpec("test"))
    assert (len(query), len(bank)) == (4, 8)
    assert load_retention(source, SplitSpec("test"), SplitSpec("test"))[1] is None, "leave-one-out"
    assert refused(load_retention, source, SplitSpec("train"), SplitSpec("train", limit=2)) == (
        "splits 'train' and 'train' share 2 samples (e.g. train/cat/deep/train2.png): the result would not be on unseen data; "
        "take them out of one, or set data.allow_overlap: true, which writes the number into every report"
    )


# ---- csv


@pytest.fixture
def table(tmp_path: Path) -> Path:
    for i in range(6):
        picture(tmp_path / "img" / f"x{i}.png", i)
    picture(tmp_path / "other" / "a b.c.png", 77)
    return tmp_path


def csv(root: Path, text: str, **keys) -> CsvTable:
    (root / "labels.csv").write_text(text, encoding=keys.pop("encoding", "utf-8"))
    settings = {"labels": {"train": "labels.csv"}, "images": ["img", "other"], "label_column": "label", "root": str(root)}
    return CsvTable(**{**settings, **keys})


def test_csv_multiclass_names_ids_bom_blank_rows_and_groups(table):
    text = "image,label,patient\nx0,cat,p1\na b.c,dog,p2\n,,\n"
    source = csv(table, text, encoding="utf-8-sig", classes=["dog", "cat"], image_suffix=".png", group_columns=["patient"])
    split = source.load("train")
    assert split.ids == ["x0", "a b.c"]
    assert split.targets.tolist() == [1, 0]
    assert split.groups == {"patient": ["p1", "p2"]}
    assert split.read(1).getpixel((0, 0)) == (77, 77, 77)


def test_csv_multilabel_and_one_hot(table):
    text = "image;a;b\nx0.png;1;0.0\nx1.png;0;0\n"
    keys = {"label_column": None, "label_columns": ["a", "b"], "delimiter": ";"}
    split = csv(table, text, task="multilabel", **keys).load("train")
    assert split.task == "multilabel"
    assert split.targets.tolist() == [[1, 0], [0, 0]]  # no finding is legal
    assert refused(csv(table, text, **keys).load, "train") == (
        f"{table}/labels.csv:3: one-hot row with 0 ones; exactly one class must be 1"
    )
    assert csv(table, "image;a;b\nx0.png;0;1\n", **keys).load("train").targets.tolist() == [1]


def test_csv_one_file_with_a_split_column(table):
    text = "image,label,fold\nx0.png,0,train\nx1.png,1,test\nx2.png,1,train\n"
    source = csv(table, text, labels="labels.csv", split_column="fold")
    assert source.load("train").ids == ["x0.png", "x2.png"]
    assert refused(source.load, "val") == (
        f"{table}/labels.csv, column 'fold': no split 'val'; it has: train, test; "
        "or cut it from the training split: --set 'data.val={fraction: 0.2}'"
    )


@pytest.mark.parametrize(
    ("text", "keys", "expected"),
    [
        ("img,label\nx0.png,0\n", {}, ":1: no column 'image' (did you mean 'img'?); it has: img, label"),
        ("image,lable\nx0.png,0\n", {}, ":1: no column 'label' (did you mean 'lable'?); it has: image, lable"),
        ("image;label\nx0.png;0\n", {}, ":1: no column 'image'; it has: image;label; is data.delimiter ';'?"),
        ("image,label,label\nx0.png,0,1\n", {}, ":1: column 'label' stands twice in the header"),
        ("", {}, ": empty file; expected a header line"),
        ("image,label\n", {}, ": no rows for split 'train'"),
        ("image,label\nx0.png,0,9\n", {}, ":2: 3 cells, the header has 2"),
        ("image,label\nx0.png,\n", {}, ":2: column 'label' is empty (an unlabelled split?)"),
        ("image,label\nx0.png,2\n", {"classes": ["a", "b"]}, ":2: label 2 is out of range; expected 0..1"),
        ("image,label\nx0.png,-1\n", {}, ":2: label -1 is out of range; expected a whole number from 0 to 99999"),
        ("image,label\nx0.png,1.5\n", {}, ":2: label 1.5 is out of range; expected a whole number from 0 to 99999"),
        ("image,label\nx0.png,nan\n", {}, ":2: label nan is out of range; expected a whole number from 0 to 99999"),
        ("image,label\nx0.png,cat\n", {}, ":2: label 'cat' is a name; list all names in order in data.classes"),
        ("image,label\nx0.png,cta\n", {"classes": ["cat", "dog"]},
         ":2: unknown class 'cta' (did you mean 'cat'?); data.classes has: cat, dog"),
        ("image,label\nx0.png,0\nx0.png,1\n", {},
         ":3: id 'x0.png' is listed twice with different labels (first on line 2); keep the right line only"),
        ("image,label\nx0.png,0\nx0.png,0\n", {},
         ":3: id 'x0.png' is listed twice (first on line 2); remove one, or --set data.on_duplicate=first"),
        ("image,label\n../img/x0.png,0\n", {}, ":2: image '../img/x0.png' points outside the image folders"),
        ("image,label\n/img/x0.png,0\n", {},
         ":2: image '/img/x0.png' points outside the image folders; for whole paths set data.images: absolute"),
        ("image,label\nx0.png,0\n", {"images": "absolute"},
         ":2: image 'x0.png' is no absolute path; name the folders in data.images instead of `absolute`"),
        ("image,label\n/img/x0.png,0\n", {"images": "absolute"}, ":2: image '/img/x0.png' not found"),
        ("image,label\n,0\n", {}, ":2: column 'image' is empty"),
        ("image,a,b\nx0.png,1,2\n", {"label_column": None, "label_columns": ["a", "b"], "task": "multilabel"},
         ":2: column 'b' must be 0 or 1, got '2'"),
        ("image,a,b\nx0.png,,\n", {"label_column": None, "label_columns": ["a", "b"], "task": "multilabel"},
         ":2: column 'a' must be 0 or 1, got '' (an unlabelled split?)"),
    ],
)  # fmt: skip
def test_csv_bad_inputs(table, text, keys, expected):
    assert refused(csv(table, text, **keys).load, "train") == f"{table}/labels.csv{expected}"


def test_csv_missing_files(table):
    assert refused(csv(table, "image,label\ny.png,0\n").load, "train") == (
        f"{table}/labels.csv:2: image 'y.png' not found in {table}/img, {table}/other"
    )
    source = csv(table, "", labels={"train": "none.csv"})
    assert refused(source.load, "train") == f"{table}/none.csv: label file not found; set data.labels"


def test_csv_settings_that_contradict():
    with pytest.raises(ValueError, match="label_column: give either"):
        CsvTable(root=".", labels={})
    with pytest.raises(ValueError, match="split_column: needed"):
        CsvTable(root=".", labels="a.csv", label_column="x")


# ---- images


def test_unreadable_images(tmp_path):
    empty = tmp_path / "empty.jpg"
    empty.touch()
    assert refused(read_image, empty) == f"{empty}: unreadable image (the file is empty); replace it or take it out of the split"
    html = tmp_path / "page.jpg"
    html.write_text("<html>not found</html>")
    assert refused(read_image, html) == (
        f"{html}: unreadable image (cannot identify image file '{html}'); replace it or take it out of the split"
    )
    rng = np.random.default_rng(0)
    whole = tmp_path / "whole.jpg"
    Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(whole)
    cut = tmp_path / "cut.jpg"
    cut.write_bytes(whole.read_bytes()[:-400])
    Image.open(cut).verify()  # Pillow's own check passes it
    assert refused(read_image, cut).startswith(f"{cut}: unreadable image (image file is truncated")
    assert refused(read_image, tmp_path / "none.png") == f"{tmp_path}/none.png: image not found"


def test_sixteen_bit_images_are_not_clipped(tmp_path):
    path = tmp_path / "scan.png"
    Image.fromarray(np.linspace(0, 4095, 64, dtype=np.uint16).reshape(8, 8)).save(path)
    assert refused(read_image, path).startswith(f"{path}: I;16 pixels (16 or 32 bits): a conversion to 8 bits would clip them")


def test_decompression_bomb_is_refused_before_decoding(tmp_path, monkeypatch):
    path = picture(tmp_path / "big.png", size=(60, 60))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert refused(read_image, path) == f"{path}: more than 1,000 pixels; downscale it first"


@pytest.mark.parametrize("mode", ["L", "LA", "P", "1", "CMYK", "RGBA"])
def test_every_8_bit_mode_becomes_rgb(tmp_path, mode):
    path = tmp_path / ("x.tif" if mode == "CMYK" else "x.png")
    Image.new("RGB", (5, 4), (255, 255, 255)).convert(mode).save(path)
    image = read_image(path)
    assert (image.mode, image.getpixel((0, 0))) == ("RGB", (255, 255, 255))


# ---- splits


def test_limit_keeps_class_proportions_and_order():
    split = Digits().load("train")
    part = limit(split, 200, seed=3)
    assert len(part) == 200
    whole = np.bincount(split.targets) / len(split)
    assert np.abs(np.bincount(part.targets, minlength=10) / 200 - whole).max() < 0.01
    assert part.ids == sorted(part.ids)
    assert part.ids == limit(split, 200, seed=3).ids != limit(split, 200, seed=4).ids
    assert limit(split, 10_000, seed=0) is split
    assert (np.asarray(part.read(7)) == np.asarray(split.read(split.ids.index(part.ids[7])))).all()


def test_hold_out_is_disjoint_complete_and_stratified():
    split = Digits().load("train")
    rest, held = hold_out(split, SplitSpec("train", fraction=0.1))
    assert sorted(rest.ids + held.ids) == split.ids
    assert np.abs(np.bincount(held.targets) / len(held) - np.bincount(split.targets) / len(split)).max() < 0.01
    assert fingerprint(rest) != fingerprint(split)


def test_hold_out_keeps_groups_whole(table):
    text = "image,label,patient\n" + "".join(f"x{i}.png,{i % 2},p{i // 2}\n" for i in range(6))
    split = csv(table, text, group_columns=["patient"]).load("train")
    rest, held = hold_out(split, SplitSpec("train", fraction=0.33, group="patient"))
    assert not set(rest.groups["patient"]) & set(held.groups["patient"])
    assert len(held) == 2
    assert refused(hold_out, split, SplitSpec("train", fraction=0.3, group="lesion")) == (
        "data.val.group 'lesion': split 'train' has no such group; it has: patient"
    )


def test_class_mismatch_between_splits(folder):
    picture(folder / "test" / "emu" / "e.png")
    source = ImageFolder(str(folder))
    assert refused(load_splits, source, SplitSpec("train"), None, SplitSpec("test")) == (
        "split 'test': classes differ from training: missing none, unknown ['emu']; every split needs the same classes"
    )


def test_overlap_between_splits(folder):
    source = ImageFolder(str(folder))
    assert refused(load_splits, source, SplitSpec("train"), SplitSpec("train", limit=2), SplitSpec("test")) == (
        "splits 'train' and 'train' share 2 samples (e.g. train/cat/deep/train2.png): the result would not be on unseen data; "
        "take them out of one, or set data.allow_overlap: true, which writes the number into every report"
    )


def test_too_small_a_validation_share(folder):
    source = ImageFolder(str(folder))
    tiny = SplitSpec("train", fraction=0.01)
    assert refused(load_splits, source, SplitSpec("train"), tiny, SplitSpec("test")) == (
        "data.val.fraction 0.01: 8 samples leave 8 to train and 0 to validate"
    )
    assert len(load_split(source, SplitSpec("train", limit=4))) == 4


# ---- more than one split, more than one label


def test_splits_joined_by_a_plus(folder):
    picture(folder / "val" / "cat" / "v.png", 200)
    picture(folder / "val" / "dog" / "v.png", 210)
    split = load_split(ImageFolder(str(folder)), SplitSpec("train+val"))
    assert len(split) == 10
    assert split.targets.tolist() == [0] * 4 + [1] * 4 + [0, 1]
    assert split.read(9).getpixel((0, 0)) == (210, 210, 210)
    assert split.take([8]).read(0).getpixel((0, 0)) == (200, 200, 200)
    assert split.paths[8].name == "v.png"
    assert refused(load_split, ImageFolder(str(folder)), SplitSpec("train+train")) == (
        "splits 'train' and 'train' share 8 samples (e.g. train/cat/deep/train0.png): a split cannot be joined with itself"
    )


def test_a_split_may_lack_classes_only_when_told(folder):
    picture(folder / "train" / "emu" / "e.png")
    source = ImageFolder(str(folder))
    assert refused(load_splits, source, SplitSpec("train"), None, SplitSpec("test")) == (
        "split 'test': classes differ from training: missing ['emu'], unknown none; every split needs the same classes, or set "
        "data.allow_missing_classes: true"
    )
    for name in ("cat", "dog"):
        (folder / "train" / name).rename(folder / "train" / f"z{name}")
        (folder / "test" / name).rename(folder / "test" / f"z{name}")
    test = load_splits(source, SplitSpec("train"), None, SplitSpec("test"), SplitRules(allow_missing_classes=True)).test
    assert test.classes == ["emu", "zcat", "zdog"]
    assert test.targets.tolist() == [1, 1, 2, 2]


def test_csv_tags_and_duplicates(table):
    keys = {"task": "multilabel", "label_separator": "|", "classes": ["a", "b", "c"]}
    split = csv(table, "image,label\nx0.png,a|c\nx1.png,\n", **keys).load("train")
    assert split.targets.tolist() == [[1, 0, 1], [0, 0, 0]]
    assert refused(csv(table, "image,label\nx0.png,a|d\n", **keys).load, "train") == (
        f"{table}/labels.csv:2: unknown class 'd'; data.classes has: a, b, c"
    )
    text = "image,label\nx0.png,0\nx1.png,1\nx0.png,0\n"
    assert csv(table, text, on_duplicate="first").load("train").ids == ["x0.png", "x1.png"]
    kept = csv(table, text, on_duplicate="keep")
    assert kept.load("train").ids == ["x0.png", "x1.png", "x0.png#2"]
    with pytest.raises(ValueError, match="^label_separator: needs task multilabel"):
        CsvTable(root=".", labels={}, label_column="x", label_separator="|")


def test_a_kept_duplicate_cannot_cross_the_cut(table):
    text = "image,label\n" + "x0.png,0\nx1.png,0\n" * 4
    source = csv(table, text, labels={"train": "labels.csv", "test": "test.csv"}, on_duplicate="keep")
    (table / "test.csv").write_text("image,label\nx2.png,0\n")
    held = SplitSpec("train", fraction=0.5)
    assert refused(load_splits, source, SplitSpec("train"), held, SplitSpec("test")).startswith(
        "splits 'train' and 'val' share 4"
    )


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"image,label\nx\xff.png,0\n", ": not a UTF-8 text file (byte 13); export it again as UTF-8"),
        (b"image,label\nx0.png,0\n\0\0\n", ":3: NUL byte: a spreadsheet or a damaged file, not text; export it again as UTF-8"),
        (b"\n", ": empty file; expected a header line"),
        (b"image\tlabel\nx0.png\t0\n", ":1: no column 'image'; it has: image\tlabel; is data.delimiter '\\t'?"),
    ],
)
def test_label_files_that_are_not_text(table, data, expected):
    source = csv(table, "")
    (table / "labels.csv").write_bytes(data)
    assert refused(source.load, "train") == f"{table}/labels.csv{expected}"


def test_the_first_five_problems_and_how_many_more(table):
    lines = refused(csv(table, "image,label\n" + "".join(f"y{i}.png,0\n" for i in range(9))).load, "train").splitlines()
    assert lines[0] == f"{table}/labels.csv:2: image 'y0.png' not found in {table}/img, {table}/other"
    assert len(lines) == 6
    assert lines[-1] == "  and 4 more (9 in all)"


def test_what_is_there_instead_of_a_missing_image(table):
    picture(table / "img" / "img" / "deep.png")
    picture(table / "img" / "Wrong.JPG")
    where = f"not found in {table}/img, {table}/other"
    assert refused(csv(table, "image,label\ndeep.png,0\n").load, "train") == (
        f"{table}/labels.csv:2: image 'deep.png' {where}; it lies in {table}/img/img: move the images up one folder, or point "
        "data.images there"
    )
    assert refused(csv(table, "image,label\nwrong.png,0\n").load, "train") == (
        f"{table}/labels.csv:2: image 'wrong.png' {where}; there is Wrong.JPG"
    )


def test_image_folder_wrapped_or_flat(tmp_path):
    picture(tmp_path / "train" / "wrapper" / "cat" / "a.png")
    assert refused(ImageFolder(str(tmp_path)).load, "train") == (
        f"{tmp_path}/train: holds one folder, wrapper/, with folders in it: it would be the only class; move its content up, so "
        f"that it is {tmp_path}/train/<class>/<image>"
    )
    picture(tmp_path / "val" / "ILSVRC2012_val_00000001.JPEG")
    assert refused(ImageFolder(str(tmp_path)).load, "val") == (
        f"{tmp_path}/val: no class folders but 1 loose images; expected {tmp_path}/val/<class>/<image>, or use data.format "
        "imagenet, with its label file"
    )


def test_torchvision_checksum_and_split_names(tmp_path):
    base = tmp_path / "flowers-102"
    picture(base / "jpg" / "image_00001.jpg")
    for name in ("imagelabels.mat", "setid.mat"):
        (base / name).write_bytes(b"half a download")
    assert refused(Torchvision("Flowers102", root=str(tmp_path)).load, "train") == (
        f"torchvision Flowers102 in {tmp_path}: Dataset not found or corrupted. You can use download=True to download it; check "
        "data.root, or --set data.download=true on a machine with a network"
    )
    assert refused(Torchvision("Flowers102", root=str(tmp_path)).load, "trainval") == (
        "torchvision Flowers102: no split 'trainval' (did you mean 'train'?); it has: train, val, test"
    )


def test_float_pixels_are_refused(tmp_path):
    path = tmp_path / "f.tif"
    Image.fromarray(np.zeros((4, 4), dtype="float32")).save(path)
    assert refused(read_image, path, 12) == (
        f"{path}: F pixels (16 or 32 bits): a conversion to 8 bits would clip them; rescale the images to 8 bits first"
    )


# ---- what a reviewer of the first version found


def test_files_that_are_listed_and_not_there(folder, tmp_path):
    (folder / "train" / "cat" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    assert refused(ImageFolder(str(folder)).load, "train") == (
        f"{folder}/train/cat/gone.png: a link to nowhere; fetch it again or take it out of the list"
    )
    source = Torchvision("OxfordIIITPet", str(pets(tmp_path / "p")))
    image = tmp_path / "p" / "oxford-iiit-pet" / "images" / "Abyssinian_1.jpg"
    image.unlink()
    assert refused(source.load, "trainval") == f"{image}: image not found; fetch it again or take it out of the list"


def test_loose_images_are_not_ignored(folder):
    picture(folder / "train" / "loose.png")
    assert refused(ImageFolder(str(folder)).load, "train") == (
        f"{folder}/train: 1 images lie beside the class folders (e.g. loose.png); move each into the folder of its class, or away"
    )


@pytest.mark.parametrize(
    ("text", "keys", "expected"),
    [
        ("image,label\n" + "a" * 300 + ",0\n", {}, ":2: '" + "a" * 60 + "...' is no file name (File name too long); is this the "
         "image column?"),
        ("image,label\nx0.png,NaN\n", {}, ":2: label NaN is out of range; expected a whole number from 0 to 99999"),
        ("image,label\nx0.png,inf\n", {}, ":2: label inf is out of range; expected a whole number from 0 to 99999"),
        ("image,label,patient\nx0.png,0,\n", {"group_columns": ["patient"]}, ":2: id 'x0.png': group column 'patient' is empty; "
         "give unknown ones a value of their own"),
    ],
)  # fmt: skip
def test_csv_cells_that_are_not_what_they_should_be(table, text, keys, expected):
    assert refused(csv(table, text, **keys).load, "train") == f"{table}/labels.csv{expected}"


def test_csv_lines_end_at_newlines_only(table):
    text = 'image,label,note\r\n\r\nx0.png,0,"a\u2028b"\r\nx1.png,1,c\u0085d\r\n'
    assert csv(table, "\n\n" + text).load("train").ids == ["x0.png", "x1.png"]
    source = csv(table, "image,label,fold\nx0.png,0,train \n", labels="labels.csv", split_column="fold")
    assert source.load("train").ids == ["x0.png"]


def test_two_classes_of_one_name(folder):
    split = ImageFolder(str(folder)).load("train")

    class Cranes:
        def load(self, name):
            return replace(split, classes=["crane", "crane"])

    assert refused(load_split, Cranes(), SplitSpec("train")) == (
        "split 'train': 1 class names stand for two classes (e.g. 'crane')"
    )
