"""How long images were waited for, and what would help."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from riftcli import recipe as recipes
from riftcli import signals
from riftcli.data.loader import ImageDataset
from riftcli.errors import DivergedError
from riftcli.training import checkpoint, final, loop
from riftcli.training.writer import Writer


def test_slow_images_are_seen_in_the_report(rift, tiny_recipe, write_recipe, monkeypatch):
    real = ImageDataset.__getitem__

    def slow(dataset, item):
        time.sleep(0.01)
        return real(dataset, item)

    monkeypatch.setattr(ImageDataset, "__getitem__", slow)
    monkeypatch.setattr(final, "LONG", 0.1)
    monkeypatch.setattr(final, "data_workers", lambda wanted: 3)
    tiny_recipe["train"]["epochs"] = 1
    code, _, err = rift("finetune", "--recipe", write_recipe(tiny_recipe), "--out", "r")
    assert code == 0, err
    timing = json.loads(Path("r/metrics.json").read_text())["timing"]
    assert 128 * 0.01 <= timing["data_seconds"] <= timing["train_seconds"]
    assert f"({timing['data_seconds'] / timing['train_seconds']:.0%} of it waiting for images)" in err
    assert timing["note"] in err
    assert timing["note"].endswith(" s; faster: train.workers auto (3 here) in place of 0")


def test_a_run_that_goes_on_has_waited_no_longer_than_it_trained(rift, tiny_recipe, write_recipe, monkeypatch, tmp_path):
    """Killed after a checkpoint in the middle of an epoch: the seconds of both are in it."""
    real, calls = checkpoint.save, []

    def killed(place, number, tensors, plain):
        calls.append(plain["progress"])
        real(place, number, tensors, plain)
        if number == 3:
            raise MemoryError("as if killed")

    monkeypatch.setattr(checkpoint, "save", killed)
    tiny_recipe["train"] |= {"epochs": 1, "save_every_steps": 3}
    assert rift("finetune", "--recipe", write_recipe(tiny_recipe), "--out", "r")[0] != 0
    assert 0 < calls[0]["data_seconds"] < calls[0]["train_seconds"]


def test_what_is_written_is_waited_for_where_saving_fails(rift, tiny_recipe, write_recipe, monkeypatch):
    """A signal, and then a checkpoint that cannot be made: no thread goes on writing into the run."""

    def refuse(state):
        raise DivergedError("as if Q had turned too far")

    def stop(*arguments):
        raise signals.StopRequested

    monkeypatch.setattr(loop, "_stopped", refuse)
    monkeypatch.setattr(loop, "_run", stop)
    closed, real = [], Writer.close
    monkeypatch.setattr(Writer, "close", lambda writer: (closed.append(1), real(writer)))
    code, _, err = rift("finetune", "--recipe", write_recipe(tiny_recipe), "--out", "r")
    assert (code, closed) == (7, [1]), err


@pytest.mark.parametrize(
    ("settings", "decodes", "expected"),
    [
        ([], True, "input.cache FOLDER, which keeps decoded images"),
        (["train.workers=1"], False, "train.workers auto (7 here) in place of 1"),
        (["input.cache=c", "train.workers=7"], True, None),
    ],
)
def test_what_would_help(settings, decodes, expected, tiny_recipe, write_recipe, monkeypatch):
    monkeypatch.setattr(final, "data_workers", lambda wanted: 7)
    monkeypatch.setattr(final, "installed", lambda name: "0.17")
    del tiny_recipe["train"]["workers"]
    recipe = recipes.load(str(write_recipe(tiny_recipe)), settings)
    line = final.faster_images({"data_seconds": 70.0, "train_seconds": 100.0}, recipe, decodes)
    assert line == (None if expected is None else f"images were waited for 70 s; faster: {expected}")
    assert final.faster_images({"data_seconds": 70.0, "train_seconds": 1000.0}, recipe, decodes) is None, "a small share"
    assert final.faster_images({"data_seconds": 7.0, "train_seconds": 10.0}, recipe, decodes) is None, "a short run"
    monkeypatch.setattr(final, "installed", lambda name: None)
    line = final.faster_images({"data_seconds": 70.0, "train_seconds": 100.0}, recipe, decodes)
    assert ('the extra "decode"' in (line or "")) == decodes
