"""Decoded images in shared memory: the same bits as without, from all processes, and never more memory than was said."""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from riftcli import dist
from riftcli.data import kept_images, memory
from riftcli.data.images import FileReader, jpeg_decoder
from riftcli.data.kept_images import ENTRY, KeepingReader, KeptImages, KeptPart
from riftcli.data.loader import ImageDataset, train_loader
from riftcli.data.split import Split, read_pixels
from riftcli.data.transforms import EvalTransform, Preprocessing, TrainTransform

PRE = Preprocessing((3, 16, 16), "bicubic", (0.5,) * 3, (0.25,) * 3, 0.875)
MUCH = 1 << 30
SIZES = [(60, 40), (31, 77), (50, 50), (12, 9), (18, 18), (200, 133), (1, 1), (33, 20), (40, 60)]


@pytest.fixture(scope="module")
def paths(tmp_path_factory) -> list[Path]:
    """Wide, tall, square, smaller than the target; JPEG, PNG, grey."""
    rng, folder, made = np.random.default_rng(0), tmp_path_factory.mktemp("kept"), []
    for i, (width, height) in enumerate(SIZES):
        shape = (height, width) if i == 2 else (height, width, 3)
        path = folder / f"{i}.{'png' if i % 3 == 2 else 'jpg'}"
        Image.fromarray(rng.integers(0, 256, shape, dtype="uint8")).save(path)
        made.append(path)
    return made


class Counting(FileReader):
    """Writes the number of every image that it decodes to a file, whatever process does."""

    def __init__(self, paths: list[Path], log: Path, tensors: bool = True) -> None:
        super().__init__(paths, tensors=tensors)
        self.log = log

    def pixels(self, i: int):
        with self.log.open("a") as file:
            file.write(f"{i}\n")
        return super().pixels(i)


def make_split(read, paths: list[Path]) -> Split:
    ids = [path.name for path in paths]
    return Split("train", ids, np.arange(len(paths)) % 2, ["a", "b"], read, paths=paths)


def epochs(split: Split, transform, count: int, workers: int) -> list[torch.Tensor]:
    """Every image of every epoch, as the loop gets it: three batches, so that two workers take turns."""
    data = ImageDataset(split, transform, seed=3)
    batches = [[(epoch, i) for i in range(start, start + 3)] for epoch in range(count) for start in (0, 3, 6)]
    return [images for images, _, _ in train_loader(data, batches, workers)]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("resize", ["tensor", "pil"])
def test_the_same_bits_as_without_and_every_image_is_decoded_once(paths, tmp_path, resize, workers):
    transforms = [EvalTransform(replace(PRE, resize=resize)), TrainTransform(replace(PRE, resize=resize), 0.5, 0.4, 0.3)]
    for k, transform in enumerate([*transforms, TrainTransform(replace(PRE, resize=resize), rotate=20.0, rand_augment=9)]):
        log = tmp_path / f"decoded{k}"
        kept = KeptImages(len(paths), MUCH, 0)
        read = Counting(paths, log)
        expected = epochs(make_split(FileReader(paths, tensors=True), paths), transform, 3, 0)
        found = epochs(make_split(KeepingReader(read, KeptPart(kept)), paths), transform, 3, workers)
        assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
        times = Counter(log.read_text().split())
        # A worker may be an epoch ahead of another, which still decodes what it looks for.
        assert len(times) == len(paths) and sum(times.values()) <= len(paths) * (1 if workers == 0 else 2)
        images, size = kept.kept()
        pixels = sum(3 * width * height for width, height in SIZES)
        assert images == len(paths) and size >= pixels + ENTRY.size * len(paths)
        if workers == 0:
            assert size == 1 + pixels + ENTRY.size * len(paths)


def test_what_is_kept_is_what_was_decoded(paths):
    kept = KeptImages(len(paths), MUCH, 0)
    read = KeepingReader(FileReader(paths, tensors=True), KeptPart(kept))
    for i in range(len(paths)):
        first, again = read.pixels(i), read.pixels(i)
        assert again.dtype == torch.uint8 and again.shape == (3, *SIZES[i][::-1])
        assert np.array_equal(again.permute(1, 2, 0).numpy(), np.asarray(read(i)))
        if isinstance(first, torch.Tensor):
            assert torch.equal(first, again) and first.stride()[1:] == again.stride()[1:], "torchvision's way depends on it"
    again += 1  # of its own memory
    assert torch.equal(read.pixels(len(paths) - 1) + 1, again)
    assert any(isinstance(read_pixels(FileReader(paths, tensors=True), i), torch.Tensor) for i in (0, 1)) == bool(jpeg_decoder())


def test_no_more_than_was_said(paths, monkeypatch):
    one = ENTRY.size + 3 * 60 * 40
    kept = KeptImages(len(paths), 1 + one, 0)
    read = KeepingReader(FileReader(paths), KeptPart(kept))
    for _ in range(2):
        for i in range(len(paths)):
            read.pixels(i)
    assert kept.kept() == (1, 1 + one), "the first fits to the byte, and nothing that comes later"
    nothing = KeptImages(len(paths), 0, 0)
    KeepingReader(FileReader(paths), KeptPart(nothing)).pixels(0)
    assert nothing.kept() == (0, 1)


def test_others_are_left_their_memory(monkeypatch):
    image = np.full((40, 60, 3), 7, "uint8")
    free, looks = [1000], []
    monkeypatch.setattr(kept_images, "free_memory", lambda: looks.append(1) or free[0])
    monkeypatch.setattr(kept_images, "LOOK", 3 * (ENTRY.size + image.nbytes))
    shared = KeptImages(100, MUCH, 1000)
    other = pickle.loads(pickle.dumps(shared))  # as of another process
    for i in range(4):
        shared.put(i, image)
    assert shared.kept()[0] == 4 and len(looks) == 2, "at the first one, and after as much as LOOK"
    free[0] = 999
    for i in range(4, 12):
        shared.put(i, image)
    assert shared.kept()[0] == 6 and len(looks) == 3, "and no more is asked"
    assert shared.get(5) is not None and shared.get(6) is None
    free[0] = 499
    assert all(other.get(i) is not None for i in range(1)), "the first look of this one empties it"
    assert shared.kept() == (0, 1) and all(kept.get(i) is None for kept in (shared, other) for i in range(12))
    free[0] = 10**9
    for kept in (other, pickle.loads(pickle.dumps(shared))):
        kept.put(1, image)
        assert kept.get(1) is None and shared.kept() == (0, 1), "nor is it begun again, by no process"


def test_memory_is_given_back_under_those_who_read_and_write():
    """Nothing is written where an image was: it could be taken for that."""
    kept = KeptImages(3, MUCH, 0)
    reader, writer = (pickle.loads(pickle.dumps(kept)) for _ in range(2))
    for i in range(3):
        kept.put(i, np.full((10, 10 + i, 3), i, "uint8"))
    assert reader.get(2) is not None
    kept.release()
    assert [reader.get(i) for i in range(3)] == [None] * 3 and kept.kept() == (0, 1)
    for one in (writer, kept):
        one.put(2, np.full((10, 12, 3), 200, "uint8"))
        assert reader.get(2) is None and kept.kept() == (0, 1)


def release_and_fill(kept: KeptImages) -> None:
    kept.release()
    fill(kept, 0, 4)


def test_only_who_made_it_ends_it():
    """Of several ranks any may be the first to come to the end; the others' last batches are not disturbed, nor is the note."""
    kept = KeptImages(8, MUCH, 0)
    other = multiprocessing.get_context("fork").Process(target=release_and_fill, args=(kept,))
    other.start()
    other.join()
    assert kept.kept()[0] == 4 and kept.get(3) is not None
    kept.release()
    assert kept.room and kept.kept() == (0, 1)


@pytest.mark.parametrize(
    ("most", "reserve", "images", "room", "needed"),
    [
        (MUCH, 0, 4, True, None),
        (MUCH, 0, 3, True, None),  # what was not drawn, or not by this machine
        (1 + 2 * (ENTRY.size + 300), 0, 4, False, 4 * (ENTRY.size + 300)),
        (1 + 4 * (ENTRY.size + 300), 0, 4, True, None),
        (MUCH, 1 << 60, 4, False, None),  # another amount would not help
        (1 + 2 * (ENTRY.size + 300), 1 << 60, 4, False, None),  # nor would it here
    ],
)
def test_what_it_came_to(most, reserve, images, room, needed, monkeypatch):
    kept = KeptImages(4, most, reserve)
    for i in range(images):
        if reserve:
            monkeypatch.setattr(kept_images, "free_memory", lambda i=i: reserve - (i > 2))
        kept._unseen = kept_images.LOOK
        kept.put(i, np.zeros((10, 10, 3), "uint8"))
    kept.release()
    assert (kept.room, kept.needed) == (room, needed)


def test_a_write_that_fails_keeps_nothing_more_and_breaks_nothing(paths, monkeypatch):
    kept = KeptImages(len(paths), MUCH, 0)
    read = KeepingReader(FileReader(paths), KeptPart(kept))
    read.pixels(0)
    write = os.writev

    def full(number, parts):
        raise OSError(28, "No space left on device")

    def short(number, parts):
        return write(number, [parts[0], memoryview(parts[1]).cast("B")[:10]])

    for broken in (short, full):
        again = pickle.loads(pickle.dumps(kept))
        monkeypatch.setattr(os, "writev", broken)
        other = KeepingReader(FileReader(paths), KeptPart(again))
        assert np.array_equal(np.asarray(other.pixels(1)), np.asarray(read(1))), broken.__name__
        monkeypatch.setattr(os, "writev", write)
        other.pixels(2)
        assert again.kept()[0] == 1, "after a failure"
        assert again.get(0) is not None
    read.pixels(1)
    assert kept.get(1) is not None, "behind what was left half written"
    assert torch.equal(kept.get(1), read.pixels(1)) and kept.kept()[0] == 2


def test_an_entry_that_is_not_of_its_image_is_not_believed(paths):
    kept = KeptImages(len(paths), MUCH, 0)
    read = KeepingReader(FileReader(paths), KeptPart(kept))
    read.pixels(0)
    places = kept._opened()[1]
    place, height, width = ENTRY.unpack(os.pread(places, ENTRY.size, 0))
    for wrong in [(place, height, width - 1), (place, height - 1, width), (place + 1, height, width), (10**9, height, width)]:
        os.pwrite(places, ENTRY.pack(*wrong), 0)
        assert kept.get(0) is None, wrong
    os.pwrite(places, ENTRY.pack(place, height, width), ENTRY.size)
    assert kept.get(1) is None, "another image's"
    os.pwrite(places, ENTRY.pack(place, height, width), 0)
    assert kept.get(0) is not None
    os.ftruncate(kept._opened()[0], place + ENTRY.size + 3 * height * width - 1)
    assert kept.get(0) is None, "all but the last byte"


def test_one_image_that_is_too_large_for_the_rest():
    kept = KeptImages(10, 5000, 0)
    for i, side in enumerate([20, 20, 40, 20]):
        kept.put(i, np.zeros((side, side, 3), "uint8"))
    assert kept.kept() == (2, 1 + 2 * (ENTRY.size + 1200))
    kept.release()
    assert not kept.room and kept.needed == 10 * (ENTRY.size + 1200)


def fill(kept: KeptImages, first: int, count: int) -> None:
    for i in range(first, first + count):
        kept.put(i, np.full((40 + i % 7, 60, 3), i % 256, "uint8"))


def fill_at_once(gate, kept: KeptImages, first: int, count: int) -> None:
    gate.wait(60)
    fill(kept, first, count)


@pytest.mark.parametrize(("method", "processes"), [("fork", 2), ("spawn", 1)])
def test_processes_that_write_at_once(method, processes):
    each = 2000
    kept, context = KeptImages(10 + each * processes, MUCH, 0), multiprocessing.get_context(method)
    fill(kept, 0, 10)  # this process has opened the files before
    gate = context.Barrier(processes)
    arguments = [(gate, kept, 10 + each * k, each) for k in range(processes)]
    workers = [context.Process(target=fill_at_once, args=own) for own in arguments]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert kept.kept()[0] == kept.count
    for i in range(kept.count):
        image = kept.get(i)
        assert image is not None and image.shape == (3, 40 + i % 7, 60) and bool((image == i % 256).all()), i


def test_a_writer_that_is_killed_leaves_no_lock_and_no_half_image():
    kept, context = KeptImages(100_010, MUCH, 0), multiprocessing.get_context("fork")
    for k in range(5):
        worker = context.Process(target=fill, args=(kept, 20_000 * k, 20_000))
        worker.start()
        end = time.monotonic() + 60
        while kept.get(20_000 * k + 20) is None and time.monotonic() < end:
            pass
        os.kill(worker.pid, signal.SIGKILL)
        worker.join()
    before = kept.kept()[0]
    fill(kept, 100_000, 10)
    assert before >= 100 and kept.kept()[0] == before + 10
    for i in [i for i in range(100_010) if i % 20_000 < 500]:
        image = kept.get(i)
        assert image is None or bool((image == i % 256).all()), i


def test_out_of_reach_nothing_is_kept_and_every_image_is_read(paths):
    code = (
        "import pickle, sys; from riftcli.data.kept_images import KeptImages; kept = KeptImages(8, 10**9, 0); "
        "kept.put(0, __import__('numpy').zeros((2, 2, 3), 'uint8')); sys.stdout.buffer.write(pickle.dumps(kept))"
    )
    ended = pickle.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)
    others = KeptImages(8, MUCH, 0)
    others.put(0, np.zeros((3, 3, 3), "uint8"))
    # A number that another file has by now: as after a process has ended and its id was given to another.
    mistaken = pickle.loads(pickle.dumps(ended))
    mistaken.files = [(now[0], was[1]) for now, was in zip(others.files, ended.files, strict=True)]
    for kept in (ended, mistaken):
        assert not kept.reachable and kept.kept() == (0, 0) and kept.get(0) is None
        read = KeepingReader(FileReader(paths), KeptPart(kept))
        assert np.array_equal(np.asarray(read.pixels(1)), np.asarray(read(1)))
    assert pickle.loads(pickle.dumps(others)).get(0).shape == (3, 3, 3)


def test_each_machine_has_its_own(monkeypatch):
    """The first rank's that can be reached; none where none is wanted, which the others still are told."""
    code = "import pickle, sys; from riftcli.data.kept_images import KeptImages; "
    code += "sys.stdout.buffer.write(pickle.dumps(KeptImages(8, 9, 0)))"
    elsewhere = pickle.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)
    before, told = KeptImages(8, MUCH, 0), []

    def gathered(*others):
        monkeypatch.setattr(
            dist, "gather_objects", lambda own: told.append(own) or [*others, pickle.loads(pickle.dumps(own)), None]
        )
        monkeypatch.setattr(dist, "rank", lambda: len(others))

    gathered(elsewhere, None)
    own = KeptImages.of_machine(8, MUCH, 0)
    assert own is told[0], "the first of this machine"
    assert KeptImages.of_machine(8, 0, 0) is None and told[1] is None
    gathered(elsewhere, before)
    for most in (MUCH, 0):
        shared = KeptImages.of_machine(8, most, 0)
        assert shared.files == before.files
    monkeypatch.delattr(os, "memfd_create")
    gathered(elsewhere)
    assert KeptImages.of_machine(8, MUCH, 0) is None and told[-1] is None


def open_in_memory() -> int:
    return sum("memfd:rift" in os.readlink(entry.path) for entry in os.scandir("/proc/self/fd") if os.path.islink(entry.path))


def test_nothing_stays_open(paths, monkeypatch):
    gc.collect()
    before = open_in_memory()
    kept = KeptImages(len(paths), MUCH, 0)
    KeepingReader(FileReader(paths), KeptPart(kept)).pixels(0)
    other = pickle.loads(pickle.dumps(kept))
    assert other.get(0) is not None and open_in_memory() == before + 6
    del other
    assert open_in_memory() == before + 4
    del kept
    assert open_in_memory() == before
    make, numbers = os.memfd_create, []

    def one(name, flags):
        if numbers:
            raise OSError(24, "Too many open files")
        numbers.append(make(name, flags))
        return numbers[0]

    monkeypatch.setattr(os, "memfd_create", one)
    with pytest.raises(OSError, match="Too many"):
        KeptImages(1, MUCH, 0)
    assert open_in_memory() == before, "nor where the second file cannot be made"


@pytest.fixture
def groups(tmp_path, monkeypatch):
    """A machine with 8 GB free, and control groups as files say."""
    proc = tmp_path / "proc"
    proc.mkdir()
    (proc / "meminfo").write_text("MemTotal: 16000000 kB\nMemFree: 1 kB\nMemAvailable:    8000000 kB\n")
    monkeypatch.setattr(memory, "PROC", proc)
    monkeypatch.setattr(memory, "GROUPS", tmp_path / "groups")

    def write(place: str, lines: str, **files: str) -> None:
        (proc / "self").mkdir(exist_ok=True)
        (proc / "self" / "cgroup").write_text(lines)
        folder = tmp_path / "groups" / place
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (folder / name.replace("__", ".")).write_text(text)

    return write


def test_the_free_memory_of_a_machine_and_of_a_job(groups):
    assert memory.free_memory() == 8_192_000_000, "no control groups"
    stat = "anon 1\ninactive_file 300000000\nactive_file 150000000\nslab_reclaimable 50000000\n"
    now = {"memory__current": "3000000000\n", "memory__stat": stat}
    groups("job/step", "0::/job/step\n", memory__max="max\n", **now)
    assert memory.free_memory() == 8_192_000_000, "no limit"
    groups("job/step", "0::/job/step\n", memory__max="4000000000\n", **now)
    assert memory.free_memory() == 1_500_000_000, "what is left of it, and files that can be read again"
    groups("job", "0::/job/step\n", memory__max="3100000000\n", **now)
    assert memory.free_memory() == 600_000_000, "the job's, not only the step's"
    groups("", "0::/elsewhere\n", memory__max="3600000000\n", **now)
    assert memory.free_memory() == 1_100_000_000, "inside a container, where the group itself is not seen"
    older = {"memory__usage_in_bytes": "1000\n", "memory__stat": "inactive_file 1\ntotal_inactive_file 4\ntotal_active_file 6\n"}
    groups("memory/box", "5:cpu,cpuacct:/x\n4:memory:/box\n1:name=systemd:/\n", memory__limit_in_bytes="1500\n", **older)
    assert memory.free_memory() == 510, "version 1"
    groups("memory/box", "4:memory:/box\n", memory__limit_in_bytes="nonsense\n", **older)
    assert memory.free_memory() == 8_192_000_000
