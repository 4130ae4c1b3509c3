"""Which samples a step sees, and their pixels, do not depend on ranks, workers or where a run was resumed."""

from __future__ import annotations

import hashlib
import os
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from riftcli.data import loader, parallel
from riftcli.data.batches import divide_batch, epoch_batches, eval_batches, steps_per_epoch
from riftcli.data.datasets.digits import Digits
from riftcli.data.holdout import limit
from riftcli.data.loader import ImageDataset, train_loader
from riftcli.data.transforms import EvalTransform, Preprocessing, TrainTransform
from riftcli.errors import DataError, UsageError

PRE = Preprocessing((3, 16, 16), "bicubic", (0.5,) * 3, (0.25,) * 3, 0.875)


def digest(workers: int, ranks: int = 1, epoch: int = 3, resize: str = "tensor") -> str:
    split = limit(Digits().load("train"), 48, seed=0)
    data = ImageDataset(split, TrainTransform(replace(PRE, resize=resize), 0.5, 0.4, 0.3), seed=1)
    steps: list[list[torch.Tensor]] = []
    for rank in range(ranks):
        batches = [[(epoch, i) for i in b] for b in epoch_batches(len(split), 16, seed=1, epoch=epoch, rank=rank, ranks=ranks)]
        for step, (images, _, index) in enumerate(train_loader(data, batches, workers)):
            if rank == 0:
                steps.append([])
            steps[step] += [images, index]
    rows = [torch.cat(parts[::2]) for parts in steps] + [torch.cat(parts[1::2]) for parts in steps]
    return hashlib.sha256(b"".join(t.numpy().tobytes() for t in rows)).hexdigest()


@pytest.fixture
def small_chunks(monkeypatch):
    """Batches of 16 are read by workers in five parts."""
    monkeypatch.setattr(loader, "CHUNK", 4)


def test_the_same_pixels_with_any_number_of_workers_and_ranks(small_chunks):
    reference = digest(workers=0)
    assert digest(workers=1) == reference
    assert digest(workers=0, resize="pil") != reference
    assert digest(workers=2, resize="pil") == digest(workers=0, resize="pil")
    assert digest(workers=3) == reference
    assert digest(workers=0, ranks=2) == reference
    assert digest(workers=0, ranks=4) == reference
    assert digest(workers=0, epoch=4) != reference


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_to_the_group_does_not_kill_a_worker_that_is_just_being_forked(number):
    reference, armed = digest(workers=0), []
    before = signal.signal(number, signal.SIG_DFL)  # Python's own handler of SIGINT would only raise, where nobody sees it
    os.register_at_fork(after_in_child=lambda: armed and os.kill(os.getpid(), number))
    armed.append(True)
    try:
        assert digest(workers=2) == reference
        assert not signal.pthread_sigmask(signal.SIG_BLOCK, set()), "this process listens again"
    finally:
        armed.clear()
        signal.signal(number, before)


def test_loading_does_not_touch_the_global_random_stream():
    state = torch.get_rng_state()
    digest(workers=0)
    digest(workers=1)
    assert torch.equal(torch.get_rng_state(), state)


def test_workers_are_started_once_and_go_on_from_epoch_to_epoch(small_chunks):
    """What they read meanwhile is the same as in one process, in order; the last batch of an epoch may be of any size."""

    class Told(torch.utils.data.Dataset):
        def __getitem__(self, item):
            return torch.tensor([*item, os.getpid()])

    order = [[(epoch, i) for i in range(size)] for epoch in range(3) for size in (16, 9, 1)]
    seen = []
    for (rows,) in train_loader(Wrapped(Told()), iter(order), 2):
        seen.append(rows)
    assert [[tuple(item) for item in rows[:, :2].tolist()] for rows in seen] == order
    processes = [set(rows[:, 2].tolist()) for rows in seen]
    assert os.getpid() not in set.union(*processes) and len(set.union(*processes)) == 2
    assert set.union(*processes[:3]) == set.union(*processes[3:6]) == set.union(*processes[6:])


def test_what_is_evaluated_again_and_again_is_decoded_once(monkeypatch):
    split, reads = limit(Digits().load("train"), 24, seed=0), []
    counted = replace(split, read=lambda i: reads.append(i) or split.read(i))
    kept = loader.KeptBatches()

    def batches(of):
        return list(kept.of(of, lambda: loader.eval_loader(of, EvalTransform(PRE), 10, 0, 0, 1)))

    first, again = batches(counted), batches(counted)
    assert sorted(reads) == list(range(24)) and len(first) == 3
    assert all(torch.equal(a, b) for one, other in zip(first, again, strict=True) for a, b in zip(one, other, strict=True))
    other = replace(counted)
    next(kept.of(other, lambda: loader.eval_loader(other, EvalTransform(PRE), 10, 0, 0, 1)))  # given up after a batch
    assert len(batches(other)) == 3 and len(reads) == 24 + 10 + 24, "only what was seen whole is kept"
    monkeypatch.setattr(loader, "MOST_KEPT", 3 * 24 * 3 * 16 * 16 - 1)  # the two above, and no third
    third = replace(counted)
    del reads[:]
    assert len(batches(third)) == len(batches(third)) == 3 and len(reads) == 48


def test_as_many_workers_as_a_rank_has_cores_beside_its_own(monkeypatch):
    monkeypatch.setattr(parallel, "cores", lambda: 8)
    monkeypatch.setattr(parallel, "_shared_memory", lambda: parallel.SMALL)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert [parallel.data_workers(wanted) for wanted in ("auto", 0, 3)] == [7, 0, 3]
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert parallel.data_workers("auto") == 1
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "16")
    assert parallel.data_workers("auto") == 0
    monkeypatch.setattr(parallel, "cores", lambda: 512)
    assert parallel.data_workers("auto") == 16
    monkeypatch.setattr(parallel, "_shared_memory", lambda: 64 << 20)
    assert parallel.data_workers("auto") == 2 and parallel.data_workers(9) == 9


@pytest.mark.parametrize("count, processes", [(40, 0), (41, 1)])
def test_a_few_images_in_memory_need_no_workers(count, processes, monkeypatch):
    monkeypatch.setattr(loader, "LITTLE", 40)
    monkeypatch.setattr(parallel, "cores_of_rank", lambda: 2)
    split = limit(Digits().load("train"), count, seed=0)
    data = ImageDataset(split, lambda pixels, seed: torch.tensor([os.getpid()]), seed=0)
    (batch,) = list(train_loader(data, [[(0, i) for i in range(8)]], "auto"))
    assert len(set(batch[0].flatten().tolist()) - {os.getpid()}) == processes


class Wrapped(torch.utils.data.Dataset):
    """Items as tuples, as batches are."""

    def __init__(self, inner) -> None:
        self.inner = inner

    def __getitem__(self, item):
        return (self.inner[item],)


def test_every_rank_sees_its_part_of_each_global_batch_once():
    whole = epoch_batches(70, 12, seed=0, epoch=0, rank=0, ranks=1)
    parts = [epoch_batches(70, 12, seed=0, epoch=0, rank=r, ranks=3) for r in range(3)]
    assert len(whole) == 5
    for step in range(5):
        assert sum((part[step] for part in parts), []) == whole[step]
    assert len({i for batch in whole for i in batch}) == 60
    assert epoch_batches(70, 12, seed=0, epoch=0, rank=1, ranks=3, first_step=2) == parts[1][2:]


@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
def test_evaluation_is_complete_and_unpadded(ranks):
    dealt = [eval_batches(21, 4, rank, ranks) for rank in range(ranks)]
    assert sorted(i for part in dealt for batch in part for i in batch) == list(range(21))
    batches = sorted(batch for part in dealt for batch in part)
    assert batches == eval_batches(21, 4, 0, 1), "whole batches, the same on any number of ranks"


def test_batch_arithmetic():
    assert divide_batch(128, 2, 32) == (32, 2)
    assert divide_batch(128, 1, None) == (128, 1)
    with pytest.raises(UsageError) as caught:
        divide_batch(128, 3, None)
    assert str(caught.value) == (
        "train.batch_size 128 is global and does not divide over 3 ranks; use --set train.batch_size=126 or another "
        "--nproc-per-node"
    )
    with pytest.raises(UsageError) as caught:
        divide_batch(128, 2, 24)
    assert str(caught.value) == (
        "train.micro_batch_size 24 does not divide the 64 samples of each rank (batch_size 128 / 2 ranks)"
    )
    assert steps_per_epoch(100, 32) == 3
    with pytest.raises(DataError) as caught:
        steps_per_epoch(20, 32)
    assert str(caught.value) == (
        "20 training samples do not fill one batch of train.batch_size 32; use --set train.batch_size=20 or less"
    )


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_is_named_in_one_line(tmp_path, workers):
    from riftcli.data.images import FileReader
    from riftcli.data.split import Split

    bad = tmp_path / "bad.png"
    bad.write_bytes(b"")
    split = Split("train", ["the-id"], torch.zeros(1, dtype=torch.long).numpy(), ["a"], FileReader([bad]))
    data = ImageDataset(split, EvalTransform(PRE), seed=0)
    with pytest.raises(DataError) as caught:
        list(train_loader(data, [[(0, 0)]], workers))
    assert str(caught.value) == (
        f"{bad}: unreadable image (the file is empty); replace it or take it out of the split [split 'train', sample 'the-id']"
    )


def test_eval_transform_is_timm_s():
    import timm

    config = {"input_size": PRE.input_size, "interpolation": "bicubic", "mean": PRE.mean, "std": PRE.std, "crop_pct": 0.875}
    reference = timm.data.create_transform(**config, is_training=False)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 255, (40, 30, 3), generator=generator, dtype=torch.uint8)
    image = Image.fromarray(pixels.numpy())
    torch.testing.assert_close(PRE.normalise(EvalTransform(PRE)(image)[None])[0], reference(image), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "lanczos", "nearest"])
@pytest.mark.parametrize("size", [(90, 61), (61, 90), (40, 40), (17, 30), (9, 12)])  # larger, as large, and smaller than needed
def test_resizing_tensors_is_resizing_images_within_two_levels(size, interpolation, crop_mode):
    coarse = np.random.default_rng(0).integers(0, 256, (7, 8, 3), dtype=np.uint8)
    pixels = np.asarray(Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BILINEAR))
    by_pillow = Preprocessing((3, 32, 32), interpolation, (0.5,) * 3, (0.25,) * 3, 0.8, crop_mode)
    by_torch = replace(by_pillow, resize="tensor")
    wanted = EvalTransform(by_pillow)(Image.fromarray(pixels))
    for given in (pixels, Image.fromarray(pixels)):
        got = EvalTransform(by_torch)(given)
        assert got.shape == wanted.shape and got.dtype == torch.uint8
        apart = (got.int() - wanted.int()).abs()
        assert apart.max() <= 2
    augmented = [TrainTransform(p, flip=0.5, vertical_flip=0.5, crop_min_area=0.5) for p in (by_pillow, by_torch)]
    for seed in range(8):
        apart = (augmented[0](Image.fromarray(pixels), seed).int() - augmented[1](pixels, seed).int()).abs()
        assert apart.max() <= 2
    assert torch.equal(EvalTransform(by_pillow)(pixels), wanted), "readers may give arrays whatever resizes them"


@pytest.mark.parametrize("settings", [{"rotate": 30.0}, {"rand_augment": 9}, {"color_jitter": 0.4}])
def test_what_pillow_does_to_an_image_it_does_in_both_ways(settings):
    """An image that has the size already is not resized: then the two are equal to the bit."""
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    whole = replace(PRE, crop_pct=1.0)
    one, other = (TrainTransform(replace(whole, resize=resize), **settings) for resize in ("pil", "tensor"))
    for seed in range(6):
        assert torch.equal(one(Image.fromarray(pixels), seed), other(pixels, seed))


@pytest.mark.parametrize(
    "settings", [{"vertical_flip": 1.0}, {"rotate": 30.0}, {"rand_augment": 9}, {"flip": 0.5, "rotate": 10.0, "rand_augment": 5}]
)
def test_every_augmentation_is_decided_by_the_seed_alone(settings):
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    image, transform = Image.fromarray(pixels), TrainTransform(PRE, **settings)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = transform(image, seed=5)
    assert torch.equal(torch.get_rng_state(), state), "the run's own random numbers are not touched"
    torch.manual_seed(2)
    assert torch.equal(transform(image, seed=5), first)
    assert first.shape == (3, PRE.size, PRE.size) and first.dtype == torch.uint8
    plain = EvalTransform(PRE)(image)
    if settings == {"vertical_flip": 1.0}:
        assert torch.equal(first, plain.flip(1))
    else:
        assert any(not torch.equal(transform(image, seed=s), plain) for s in range(5))
        assert len({transform(image, seed=s).numpy().tobytes() for s in range(8)}) > 1


def test_augmentations_are_off_unless_said():
    from riftcli.recipe.image_sections import AugmentSection

    assert AugmentSection().off
    for key, value in {"flip": 0.5, "vertical_flip": 0.5, "rotate": 5.0, "rand_augment": 0, "color_jitter": 0.1}.items():
        assert not AugmentSection(**{key: value}).off, key
