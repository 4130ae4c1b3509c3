"""Decoded once: the same pixels as without the store, shared, keyed by content, published whole."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter

from riftcli.console import Console
from riftcli.data import image_store as decode
from riftcli.data.image_store import Decoding, ImageStore
from riftcli.data.images import FileReader, jpeg_decoder, read_image
from riftcli.data.reading import needed_short_side, sift, with_pixels
from riftcli.data.split import Split
from riftcli.data.transforms import EvalTransform, Preprocessing, as_tensor
from riftcli.errors import DataError, StorageError
from riftcli.recipe.image_sections import AugmentSection, InputSection

PRE = Preprocessing((3, 16, 16), "bicubic", (0.5,) * 3, (0.25,) * 3, 0.875)


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    """Wide, tall, square, smaller than the target; PNG and JPEG."""
    rng = np.random.default_rng(0)
    made = []
    for i, (width, height) in enumerate([(60, 40), (31, 77), (50, 50), (12, 9), (18, 18), (200, 133)]):
        smooth = gaussian_filter(rng.normal(size=(height, width, 3)), (3, 3, 0))
        path = tmp_path / "images" / f"{i}.{'jpg' if i % 2 else 'png'}"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray((127 + 100 * smooth / np.abs(smooth).max()).astype("uint8")).save(path)
        made.append(path)
    return made


def make_split(paths: list[Path]) -> Split:
    targets = np.arange(len(paths)) % 2
    return Split("train", [p.name for p in paths], targets, ["a", "b"], FileReader(paths), paths=paths)


@pytest.mark.parametrize("resize", ["tensor", "pil"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "lanczos"])
def test_the_network_sees_the_same_pixels_bit_for_bit(paths, tmp_path, interpolation, resize):
    pre = Preprocessing((3, 16, 16), interpolation, (0.5,) * 3, (0.25,) * 3, 0.875, resize=resize)
    stored = ImageStore(str(tmp_path / "cache"), Decoding(18, interpolation, resize=resize)).reader(paths)
    transform = EvalTransform(pre)
    for i, path in enumerate(paths):
        assert torch.equal(transform(stored(i)), transform(read_image(path))), path.name
        assert torch.equal(transform(stored.pixels(i)), transform(stored(i)))
    assert stored(3).size == (12, 9), "a small image is kept as it is"
    again = pickle.loads(pickle.dumps(stored))  # noqa: S301 - what a data worker does
    assert torch.equal(transform(again(0)), transform(stored(0)))


def test_nothing_is_decoded_twice_and_only_what_is_new_is(paths, tmp_path, monkeypatch):
    store = ImageStore(str(tmp_path / "cache"), Decoding(18))
    decoded: list[Path] = []
    original = decode.read_image
    monkeypatch.setattr(decode, "read_image", lambda path, *a: decoded.append(path) or original(path, *a))
    store.reader(paths[:4])
    assert decoded == paths[:4]
    store.reader(paths[:4])
    store.reader(paths[2:])  # another split with some of the same files, e.g. another fold
    assert decoded == paths
    Image.new("RGB", (30, 30), (9, 8, 7)).save(paths[0])
    fresh = store.reader(paths)
    assert decoded == [*paths, paths[0]], "a changed file is another image"
    assert fresh(0).getpixel((3, 3)) == (9, 8, 7)
    other = ImageStore(str(tmp_path / "cache"), Decoding(20))
    assert other.folder != store.folder, "another way of decoding is another folder"
    other.reader(paths)
    assert len(decoded) == 2 * len(paths) + 1


def test_images_are_known_by_their_content(paths, tmp_path, monkeypatch):
    """A file replaced by one of the same size and date is another image; a data set that was moved is the same one."""
    bitmap = tmp_path / "images" / "x.bmp"
    Image.new("RGB", (20, 20), (1, 2, 3)).save(bitmap)
    before = bitmap.stat()
    store = ImageStore(str(tmp_path / "cache"), Decoding(18))
    store.reader([*paths, bitmap])
    Image.new("RGB", (20, 20), (4, 5, 6)).save(tmp_path / "y.bmp")
    os.replace(tmp_path / "y.bmp", bitmap)
    os.utime(bitmap, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (bitmap.stat().st_size, bitmap.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert store.reader([bitmap])(0).getpixel((0, 0)) == (4, 5, 6)
    monkeypatch.setattr(decode, "read_image", lambda *a: pytest.fail("decoded again"))
    (tmp_path / "images").rename(tmp_path / "moved")
    moved = [tmp_path / "moved" / path.name for path in paths]
    assert store.reader(moved)(0).size == (27, 18)
    assert decode.file_state(moved[0]) in decode.stored_files(str(tmp_path / "cache"))


def test_what_a_killed_writer_left_is_cleaned_up(paths, tmp_path):
    store = ImageStore(str(tmp_path / "cache"), Decoding(18))
    store.folder.mkdir(parents=True)
    (store.folder / "abc.bin.tmp").write_bytes(b"half")
    store.reader(paths)
    assert not list(store.folder.glob("*.tmp"))


def test_a_complete_store_may_be_read_only_and_a_file_is_no_store(paths, tmp_path, monkeypatch):
    store = ImageStore(str(tmp_path / "cache"), Decoding(18))
    store.reader(paths)
    monkeypatch.setattr(decode, "locked", lambda path: pytest.fail("no lock is needed to read"))
    assert store.reader(paths[1:3])(0).size == (18, 44)
    (tmp_path / "file").touch()
    with pytest.raises(StorageError) as caught:
        ImageStore(str(tmp_path / "file"), Decoding(18)).reader(paths)
    folder = ImageStore(str(tmp_path / "file"), Decoding(18)).folder
    assert str(caught.value) == f"{folder}: cannot keep decoded images (Not a directory); choose another input.cache"
    paths[0].unlink()
    with pytest.raises(DataError) as gone:
        store.reader(paths)
    assert str(gone.value) == f"{paths[0]}: image not found (No such file or directory)"


def test_a_pack_that_is_not_whole_is_decoded_again_and_a_flipped_byte_is_named(paths, tmp_path):
    store = ImageStore(str(tmp_path / "cache"), Decoding(18))
    store.reader(paths)
    (pack,) = store.folder.glob("*.bin")
    index = pack.with_suffix(".npy")
    data = bytearray(pack.read_bytes())
    pack.write_bytes(data[:-1])
    assert store.reader(paths)(5).size == (27, 18)
    assert pack.stat().st_size == len(data)
    data[10] ^= 1
    pack.write_bytes(data)
    with pytest.raises(DataError) as caught:
        store.reader(paths)(0)
    assert str(caught.value) == f"{pack}: damaged (the pixels of {paths[0]}); delete {pack.parent} and run again"
    index.write_bytes(b"\x93NUMPY broken")
    assert store.reader(paths)(0).size == (27, 18)


def test_unreadable_images_are_all_named_and_leave_nothing_half_written(paths, tmp_path):
    paths[1].write_bytes(b"")
    paths[2].write_bytes(paths[2].read_bytes()[:200])
    store = ImageStore(str(tmp_path / "cache"), Decoding(18))
    with pytest.raises(DataError) as caught:
        store.reader(paths)
    first, second = str(caught.value).splitlines()
    assert first == f"{paths[1]}: unreadable image (the file is empty); replace it or take it out of the split"
    assert second.startswith(f"{paths[2]}: unreadable image (")
    assert [p.name for p in store.folder.iterdir()] == ["lock"]


def test_a_full_disk_is_exit_8_and_leaves_nothing(paths, tmp_path, monkeypatch):
    store = ImageStore(str(tmp_path / "cache"), Decoding(18))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError) as caught:
        store.reader(paths)
    text = str(caught.value)
    assert text.startswith(f"{store.folder}/")
    assert text.endswith(".bin: cannot be written (No space left on device); free some space")
    assert [p.name for p in store.folder.iterdir()] == ["lock"]


def _fill(cache: str, paths: list[Path], queue) -> None:
    reader = ImageStore(cache, Decoding(18)).reader(paths)
    queue.put([np.asarray(reader(i)).sum() for i in range(len(paths))])


def test_two_processes_at_once_share_one_pack(paths, tmp_path):
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    cache = str(tmp_path / "cache")
    started = [context.Process(target=_fill, args=(cache, paths, queue)) for _ in range(2)]
    for process in started:
        process.start()
    sums = [queue.get(timeout=60) for _ in started]
    for process in started:
        process.join()
    assert sums[0] == sums[1]
    assert len(list(Path(cache).glob("*/*.bin"))) == 1


def test_many_images_go_through_several_processes(tmp_path):
    made = []
    for i in range(70):
        path = tmp_path / f"{i}.png"
        Image.new("RGB", (24, 20), (i, 2 * i, 255 - i)).save(path)
        made.append(path)
    reader = ImageStore(str(tmp_path / "cache"), Decoding(10)).reader(made)
    assert [reader(i).getpixel((1, 1)) for i in range(70)] == [(i, 2 * i, 255 - i) for i in range(70)]


def test_draft_mode_never_goes_below_what_the_transform_needs(paths, tmp_path):
    large = tmp_path / "large.jpg"
    smooth = gaussian_filter(np.random.default_rng(1).normal(size=(480, 720, 3)), (20, 20, 0))
    Image.fromarray((127 + 100 * smooth / np.abs(smooth).max()).astype("uint8")).save(large, quality=95)
    assert read_image(large).size == (720, 480)
    assert read_image(large, at_least=100).size == (180, 120)
    assert read_image(large, at_least=300).size == (720, 480)
    full, draft = Decoding(100).resized(large), Decoding(100, draft=True).resized(large)
    assert full.shape == draft.shape == (100, 150, 3)
    assert np.abs(full.astype(int) - draft).mean() < 1.5, "the same picture, not the same bits"
    assert read_image(paths[0], at_least=10).size == (60, 40), "PNG has no draft mode"


def test_what_size_is_kept():
    assert needed_short_side(PRE) == 18
    assert needed_short_side(PRE, AugmentSection(flip=0.5)) == 18
    assert needed_short_side(PRE, AugmentSection(crop_min_area=0.25)) == 32


def test_recipe_options_reach_the_reader(paths, tmp_path):
    split = make_split(paths)
    assert with_pixels(split, InputSection(), PRE, Console(quiet=True)) is split
    settings, quiet = InputSection(cache=str(tmp_path / "c"), cache_short_side=30), Console(quiet=True)
    assert min(with_pixels(split, settings, PRE, quiet, AugmentSection()).read(5).size) == 30
    assert min(with_pixels(split, settings, PRE, quiet).read(5).size) == 18, "evaluation is exact"
    assert with_pixels(split, InputSection(draft=True), PRE, quiet).read(5).size == (50, 34), "133 / 4 is above 18"


def test_16_bit_grey_by_its_depth(tmp_path):
    ramp = np.linspace(0, 4095, 64).round().astype("uint16").reshape(8, 8)
    path = tmp_path / "ramp.png"
    Image.fromarray(ramp).save(path)
    grey = np.asarray(read_image(path, bit_depth=12))[..., 0]
    assert np.abs(grey - ramp / 4095 * 255).max() <= 0.5
    with pytest.raises(DataError) as caught:
        read_image(path, bit_depth=10)
    assert str(caught.value) == (
        f"{path}: pixel values from 0 to 4095 do not fit input.bit_depth 10 (0..1023); set the depth that they have"
    )


def test_unreadable_images_are_skipped_only_when_asked_counted_and_capped(paths, capsys, tmp_path, monkeypatch):
    split = make_split(paths)
    assert sift(split, InputSection(check_images="decode"), Console()) == (split, [])
    paths[4].write_bytes(b"")
    assert sift(split, InputSection(), Console())[0] is split, "found when it is read"
    with pytest.raises(DataError) as caught:
        sift(split, InputSection(check_images="decode"), Console())
    line = f"{paths[4]}: unreadable image (the file is empty); replace it or take it out of the split"
    assert str(caught.value) == line
    with pytest.raises(DataError) as caught:
        sift(split, InputSection(on_bad_image="skip"), Console())
    assert str(caught.value) == (
        f"1 of 6 images of split 'train' are unreadable, more than input.max_bad 0.01: mend them or raise it\n{line}"
    )
    kept, bad = sift(split, InputSection(on_bad_image="skip", max_bad=0.2), Console())
    assert (len(kept), bad) == (5, ["4.png"])
    ImageStore(str(tmp_path / "cache"), Decoding(18)).reader(kept.paths)
    monkeypatch.setattr(decode, "read_image", lambda path, *a: (_ for _ in ()).throw(DataError(f"{path}: read")))
    stored = InputSection(check_images="decode", cache=str(tmp_path / "cache"))
    assert sift(kept, stored, Console()) == (kept, []), "what the store holds has been read before"
    assert "warning: split 'train': 1 unreadable images are left out: 4.png" in capsys.readouterr().err


def test_workers_do_not_outlive_a_parent_that_is_killed():
    script = "import time; from riftcli.data.parallel import in_parallel; list(in_parallel(time.sleep, [30] * 100, 2))"
    parent = subprocess.Popen([sys.executable, "-c", script])
    children: set[int] = set()
    deadline = time.monotonic() + 30
    while len(children) < 2 and time.monotonic() < deadline:
        time.sleep(0.2)
        children = {pid for pid in descendants(parent.pid) if "spawn_main" in command(pid)}
    assert len(children) == 2
    time.sleep(1.5)  # they have started to watch
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 30
    while any("spawn_main" in command(pid) for pid in children) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not [pid for pid in children if "spawn_main" in command(pid)]


def command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def descendants(pid: int) -> list[int]:
    text = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True).stdout
    return [int(word) for word in text.split()]


# ---- the other decoder


@pytest.fixture
def torchcodec():
    if jpeg_decoder() is None:
        pytest.skip("the extra `decode` is not installed")


def encodings() -> dict[str, tuple[str, dict, str]]:
    """Name -> (mode, options of the encoder, suffix)."""
    turned = Image.Exif()
    turned[274] = 6
    jpegs = {
        "plain": {},
        "progressive": {"progressive": True},
        "no subsampling": {"subsampling": 0},
        "other subsampling": {"subsampling": 1},
        "coarse": {"quality": 10},
        "restarts": {"restart_marker_blocks": 4},
        "turned": {"exif": turned},
    }
    modes = {"grey": ("L", {}, "jpg"), "cmyk": ("CMYK", {}, "jpg"), "png": ("RGB", {}, "png"), "alpha": ("RGBA", {}, "png")}
    return {**{name: ("RGB", options, "jpg") for name, options in jpegs.items()}, **modes}


@pytest.mark.parametrize("name", encodings())
@pytest.mark.parametrize("size", [(64, 48), (17, 33), (1, 1)])
def test_another_decoder_gives_the_same_bits(name, size, torchcodec, tmp_path):
    mode, options, suffix = encodings()[name]
    coarse = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(coarse).resize(size).convert(mode).save(path, **options)
    got, wanted = FileReader([path], tensors=True).pixels(0), read_image(path)
    assert isinstance(got, torch.Tensor) == (suffix == "jpg" and name != "turned"), "what it turns is Pillow's"
    assert torch.equal(as_tensor(got), as_tensor(wanted))
    assert isinstance(FileReader([path]).pixels(0), Image.Image)


@pytest.mark.parametrize("kept", [0, 2, 300, 900])
def test_another_decoder_says_the_same_of_what_is_wrong(kept, torchcodec, paths, tmp_path):
    path = tmp_path / "a.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:kept])
    errors = []
    for read in (FileReader([path]), FileReader([path], tensors=True).pixels):
        with pytest.raises(DataError) as caught:
            read(0)
        errors.append(str(caught.value))
    assert errors[0] == errors[1]


def test_the_other_decoder_is_used_for_training_images_that_torchvision_resizes(torchcodec, paths):
    split, read = make_split(paths), InputSection()
    moved = AugmentSection(flip=0.5)
    assert with_pixels(split, read, PRE, Console(quiet=True), moved).read.tensors
    for settings, augment in ((read, None), (read, AugmentSection()), (InputSection(resize="pil"), moved)):
        assert with_pixels(split, settings, PRE, Console(quiet=True), augment) is split
