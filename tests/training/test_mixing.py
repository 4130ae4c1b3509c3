"""Mixup and CutMix: pixels and losses against loops in fp64, any number of micro-batches, and what cannot be mixed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from riftcli.methods.objectives.bce import BinaryCrossEntropy
from riftcli.methods.objectives.cross_entropy import CrossEntropy
from riftcli.training.mixing import MixedObjective


def steps(run: str | Path) -> list[dict]:
    rows = [json.loads(line) for line in (Path(run) / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["kind"] == "step"]


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0.0), (0.0, 1.0), (0.4, 1.0)])
def test_pixels_and_losses_are_those_of_a_loop(mixup, cutmix):
    torch.manual_seed(0)
    images = torch.randint(0, 256, (5, 3, 9, 12), dtype=torch.uint8)
    targets = torch.tensor([0, 1, 2, 2, 0])
    objective = CrossEntropy(class_weights=[1.0, 2.0, 0.5], label_smoothing=0.1).build(targets, 3)
    mixing = MixedObjective(objective, mixup, cutmix, seed=3)
    shares, cut = [], 0
    for step in range(40):
        pairs, both = mixing.mix(images, targets, step)
        mixed = torch.cat([mixing.blend(part) for part in pairs.split(2)])
        shares.append(mixing.share)
        assert both.tolist() == [[int(targets[i]), int(targets[i - 1])] for i in range(5)]
        wide, mine, count = mixed.double(), images.double(), 0
        blended = mixing.share * mine + (1 - mixing.share) * mine.roll(1, 0)
        pasted = not torch.allclose(wide, blended, atol=1e-3)
        cut += pasted
        if pasted:
            own = (wide == mine).all(1)  # of all channels
            other = (wide == mine.roll(1, 0)).all(1)
            assert (own | other).all()
            boxes = other & ~own
            count = int(boxes.any(0).sum())
            assert count / (9 * 12) == pytest.approx(1 - mixing.share, abs=1e-6)
        logits = torch.randn(5, 3)
        soft = mixing.share * F.one_hot(both[:, 0], 3) + (1 - mixing.share) * F.one_hot(both[:, 1], 3)
        expected = torch.zeros(5, dtype=torch.float64)
        for i in range(5):
            for c in range(3):
                alone = objective.losses(logits[i : i + 1], torch.tensor([c]))
                expected[i] += float(soft[i, c]) * float(alone)
        torch.testing.assert_close(mixing.losses(logits, both).double(), expected, rtol=1e-5, atol=1e-6)
        weights = torch.tensor([1.0, 2.0, 0.5])
        torch.testing.assert_close(mixing.weights(both), soft @ weights, rtol=1e-5, atol=1e-6)
    assert len(set(shares)) > 15
    assert (cut > 0) == (cutmix > 0)
    assert (cut < 38) == (mixup > 0)
    other = MixedObjective(objective, mixup, cutmix, seed=3)
    assert torch.equal(other.blend(other.mix(images, targets, 39)[0]), mixed), "what is drawn depends on seed and step alone"


def test_several_labels_are_those_of_soft_targets():
    torch.manual_seed(0)
    images, targets = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8), torch.randint(0, 2, (4, 5), dtype=torch.uint8)
    mixing = MixedObjective(BinaryCrossEntropy().build(targets, 5), 1.0, 0.0, seed=0)
    _, both = mixing.mix(images, targets, 0)
    logits = torch.randn(4, 5)
    soft = mixing.share * targets.float() + (1 - mixing.share) * targets.float().roll(1, 0)
    expected = F.binary_cross_entropy_with_logits(logits, soft, reduction="none").sum(1)
    torch.testing.assert_close(mixing.losses(logits, both), expected)


@pytest.mark.parametrize(
    "regularizer",
    [{"name": "feature_distill"}, {"name": "rift", "estimator": "paired"}, {"name": "rsc", "estimator": "debiased"}],
)
def test_micro_batches_and_the_pretrained_copy_see_the_same_mixtures(rift, tiny_recipe, write_recipe, regularizer):
    tiny_recipe |= {"regularizer": regularizer, "augment": {"mixup": 0.4, "cutmix": 1.0}}
    tiny_recipe["train"]["epochs"] = 1
    recipe = write_recipe(tiny_recipe)
    for name, settings in (("whole", []), ("parts", ["--set", "train.micro_batch_size=8"])):
        code, _, err = rift("finetune", "--recipe", recipe, "--out", name, *settings)
        assert code == 0, err
    whole, parts = steps("whole"), steps("parts")
    assert abs(whole[0]["penalty_loss"]) < 1e-4, "before the first step both models are one, so mixtures are equal too"
    for key in ("task_loss", "penalty_loss", "grad_norm"):
        assert parts[0][key] == pytest.approx(whole[0][key], rel=1e-4, abs=1e-6)
        assert parts[-1][key] == pytest.approx(whole[-1][key], rel=0.02, abs=1e-6)


def test_two_processes_mix_as_one_does(tiny_recipe, write_recipe, tmp_path):
    tiny_recipe |= {"regularizer": {"name": "feature_distill"}, "augment": {"mixup": 0.4, "cutmix": 1.0}}
    tiny_recipe["train"]["epochs"] = 1
    recipe = write_recipe(tiny_recipe)
    for name, ranks in (("one", "1"), ("two", "2")):
        command = [sys.executable, "-m", "riftcli", "finetune", "--recipe", recipe, "--device", "cpu", "--out", tmp_path / name]
        done = subprocess.run([*command, "--nproc-per-node", ranks], capture_output=True, text=True, timeout=300, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    one, two = steps(tmp_path / "one"), steps(tmp_path / "two")
    for key in ("task_loss", "penalty_loss", "grad_norm"):
        assert two[0][key] == pytest.approx(one[0][key], rel=1e-4, abs=1e-6)
        assert two[-1][key] == pytest.approx(one[-1][key], rel=0.02, abs=1e-6)


def test_a_frozen_backbone_sees_mixed_images_too(rift, tiny_recipe, write_recipe):
    tiny_recipe |= {"adapter": {"name": "linear"}, "regularizer": {"name": "none"}}
    tiny_recipe["train"]["epochs"] = 1
    recipe = write_recipe(tiny_recipe)
    assert rift("finetune", "--recipe", recipe, "--out", "plain")[0] == 0
    code, _, err = rift("finetune", "--recipe", recipe, "--out", "mixed", "--set", "augment.mixup=1")
    assert code == 0, err
    assert steps("mixed")[0]["task_loss"] > steps("plain")[0]["task_loss"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"regularizer": {"name": "rift"}},
            "cannot be used with regularizer.estimator plugin, which compares with the covariance of",
        ),
        (
            {"augment": {"mixup": 1, "flip": 0.5, "views": 2}},
            "cannot be used with augment.views: a mixed image is never the same",
        ),
        ({"objective": {"name": "contrastive"}}, "cannot be used with an objective of images and their texts"),
        ({"regularizer": {"name": "dive", "on": "task"}}, "cannot be used with a regularizer of images and their texts"),
    ],
)
def test_what_cannot_be_mixed_is_refused_by_name(rift, tiny_recipe, write_recipe, change, message):
    tiny_recipe |= {"augment": {"mixup": 1}, **change}
    code, _, err = rift("recipes", "validate", write_recipe(tiny_recipe))
    assert code == 2
    assert f"augment.mixup: {message}" in err
