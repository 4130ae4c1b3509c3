"""Which samples a step sees, and their pixels, do not depend on ranks, workers or where a run was resumed."""

from __future__ import annotations

import hashlib
import os
import signal

import numpy as np
import pytest
import torch
from PIL import Image

from riftcli.data.batches import divide_batch, epoch_batches, eval_batches, steps_per_epoch
from riftcli.data.datasets.digits import Digits
from riftcli.data.holdout import limit
from riftcli.data.loader import ImageDataset, train_loader
from riftcli.data.transforms import EvalTransform, Preprocessing, TrainTransform
from riftcli.errors import DataError, UsageError

PRE = Preprocessing((3, 16, 16), "bicubic", (0.5,) * 3, (0.25,) * 3, 0.875)


def digest(workers: int, ranks: int = 1, epoch: int = 3) -> str:
    split = limit(Digits().load("train"), 48, seed=0)
    data = ImageDataset(split, TrainTransform(PRE, 0.5, 0.4, 0.3), seed=1, epoch=epoch)
    steps: list[list[torch.Tensor]] = []
    for rank in range(ranks):
        batches = epoch_batches(len(split), 16, seed=1, epoch=epoch, rank=rank, ranks=ranks)
        for step, (images, _, index) in enumerate(train_loader(data, batches, workers)):
            if rank == 0:
                steps.append([])
            steps[step] += [images, index]
    rows = [torch.cat(parts[::2]) for parts in steps] + [torch.cat(parts[1::2]) for parts in steps]
    return hashlib.sha256(b"".join(t.numpy().tobytes() for t in rows)).hexdigest()


def test_the_same_pixels_with_any_number_of_workers_and_ranks():
    reference = digest(workers=0)
    assert digest(workers=1) == reference
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
    data = ImageDataset(split, EvalTransform(PRE), seed=0, epoch=0)
    with pytest.raises(DataError) as caught:
        list(train_loader(data, [[0]], workers))
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
    from riftcli.recipe.sections import AugmentSection

    assert AugmentSection().off
    for key, value in {"flip": 0.5, "vertical_flip": 0.5, "rotate": 5.0, "rand_augment": 0, "color_jitter": 0.1}.items():
        assert not AugmentSection(**{key: value}).off, key
