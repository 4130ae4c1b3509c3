"""What is written while training goes on: in order, of copies, with its errors raised; and never beside a fork."""

from __future__ import annotations

import os
import threading

import pytest
import torch

from riftcli.errors import DivergedError, StorageError
from riftcli.training import best, checkpoint, loop
from riftcli.training.writer import Writer


def test_things_are_written_in_order_and_errors_are_raised_by_whoever_comes_next():
    writer, done = Writer(), []
    for i in range(5):
        writer.submit("checkpoint" if i % 2 else "model", lambda i=i: done.append(i))
    writer.wait()
    assert done == [0, 1, 2, 3, 4]

    def fail():
        raise StorageError("full")

    writer.submit("model", fail)
    writer.submit("checkpoint", lambda: done.append(5))
    with pytest.raises(StorageError, match="full"):
        writer.submit("checkpoint", lambda: done.append(6))
    assert done == [0, 1, 2, 3, 4], "what was given after what failed is not done"


def test_closed_it_has_no_thread_and_begins_anew():
    writer, done = Writer(), []
    writer.submit("model", lambda: done.append(0))
    writer.close()
    assert done == [0] and writer._thread is None
    writer.submit("model", lambda: done.append(1))
    writer.close()
    assert done == [0, 1]

    def fail():
        raise StorageError("full")

    writer.submit("model", fail)
    with pytest.raises(StorageError, match="full"):
        writer.close()
    with pytest.raises(StorageError, match="full"):
        writer.submit("checkpoint", fail)
    writer.close()
    assert writer._thread is None


def test_copies_are_of_the_moment():
    writer, weight = Writer(), torch.ones(3)
    copies = writer.copies({"model": {"a": weight, "b": weight}})
    weight.zero_()
    assert copies["model"]["a"].tolist() == [1, 1, 1]
    assert copies["model"]["a"].data_ptr() != copies["model"]["b"].data_ptr()


def test_a_process_is_not_forked_while_something_is_written():
    writer, began, done = Writer(), threading.Event(), threading.Event()

    def slow():
        began.set()
        done.wait(0.5)
        done.set()

    writer.submit("model", lambda: None)  # the first is waited for
    writer.submit("model", slow)
    began.wait(5)
    child = os.fork()
    if not child:
        os._exit(0 if done.is_set() else 1)  # of a fork while it was written
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    writer.wait()


def test_training_goes_on_while_a_checkpoint_is_written(rift, tiny_recipe, write_recipe, monkeypatch, tmp_path):
    """The second one is written only when two more steps have been taken; it is of the weights that it was made of."""
    tiny_recipe["train"] |= {"save_every_steps": 3, "epochs": 1, "batch_size": 16}
    recipe = write_recipe(tiny_recipe)
    assert rift("finetune", "--recipe", recipe, "--out", "plain")[0] == 0
    real_save, real_move, further, written = checkpoint.save, loop._move, threading.Event(), []

    def late(folder, step, tensors, state):
        if step == 6:
            assert further.wait(60), "the steps wait for the checkpoint"
        written.append(step)
        return real_save(folder, step, tensors, state)

    def counted(state, *arguments):
        real_move(state, *arguments)
        if state.progress.step == 8:
            assert written == [3]
            further.set()

    monkeypatch.setattr(checkpoint, "save", late)
    monkeypatch.setattr(loop, "_move", counted)
    code, _, err = rift("finetune", "--recipe", recipe, "--out", "r")
    assert code == 0 and written == [3, 6, 8], err
    for step in written[1:]:
        for file in ("model", "optimizer", "penalty", "random"):
            place = f"last/step-{step:08d}/{file}.safetensors"
            assert (tmp_path / "r" / place).read_bytes() == (tmp_path / "plain" / place).read_bytes()


def test_no_checkpoint_names_weights_that_could_not_be_written(rift, tiny_recipe, write_recipe, monkeypatch, read_json, tmp_path):
    """The weights of the best epoch fail to be written: the run ends, and what it goes on from is of before."""
    tiny_recipe["train"]["epochs"] = 4
    tiny_recipe["eval"]["best"] = "acc"
    real, calls = best.save_folder, []

    def full(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise StorageError("r/model: full")
        return real(*arguments)

    monkeypatch.setattr(loop, "_keeps_enough", lambda *a: True)
    monkeypatch.setattr(best, "save_folder", full)
    monkeypatch.setattr(loop, "score", rising(loop.score))
    recipe = write_recipe(tiny_recipe)
    code, _, err = rift("finetune", "--recipe", recipe, "--out", "r")
    assert code == 8 and err.splitlines()[-1] == "error: r/model: full"
    saved = [read_json(path / "state.json")["progress"] for path in sorted((tmp_path / "r/last").glob("step-*"))]
    assert [progress["best_epoch"] for progress in saved] == [1]
    assert read_json(tmp_path / "r/model/config.json")["rift"]["epoch"] == 1
    assert rift("finetune", "--resume", "r")[0] == 0
    assert read_json(tmp_path / "r/metrics.json")["model"]["epoch"] == 4


def rising(score):
    """Every validation is better than the one before."""
    values = iter(range(1, 100))

    def better(names, seen):
        found = score(names, seen)
        found["acc"] = {**found["acc"], "value": next(values) / 100}
        return found

    return better


def test_a_folder_of_other_weights_is_noticed_after_an_interruption_too(rift, tiny_recipe, write_recipe, monkeypatch):
    """The last weights that are kept are written wrong; the first were right, and were compared."""
    tiny_recipe["train"]["epochs"] = 3
    real, calls = best.save_folder, []

    def wrong(folder, vit, *arguments):
        calls.append(folder)
        if len(calls) == 2:
            with torch.no_grad():
                vit.head.weight.mul_(1.5)
        return real(folder, vit, *arguments)

    monkeypatch.setattr(best, "save_folder", wrong)
    monkeypatch.setattr(loop, "score", rising(loop.score))
    monkeypatch.setattr(loop, "_out_of_patience", lambda state: state.progress.best_epoch == 2)
    for command in (("--recipe", write_recipe(tiny_recipe), "--out", "r"), ("--resume", "r")):
        code, _, err = rift("finetune", *command)
        assert code == 8 and "error: r/model: the saved weights give other logits than the model in memory" in err


def test_how_a_run_ended_is_not_hidden_by_what_could_not_be_written(rift, tiny_recipe, write_recipe, monkeypatch):
    tiny_recipe["train"] |= {"save_every_steps": 1, "epochs": 1}
    real = checkpoint.save

    def full(folder, step, *arguments):
        if step == 2:
            raise StorageError("r/last: full")
        return real(folder, step, *arguments)

    def diverged(state, result, norm, index):
        if state.progress.step == 2:
            raise DivergedError("step 3: loss or gradient is not finite")
        return check(state, result, norm, index)

    check = loop.check_health
    monkeypatch.setattr(checkpoint, "save", full)
    monkeypatch.setattr(loop, "check_health", diverged)
    code, _, err = rift("finetune", "--recipe", write_recipe(tiny_recipe), "--out", "r")
    assert code == 7 and err.splitlines()[-1] == "error: step 3: loss or gradient is not finite"
