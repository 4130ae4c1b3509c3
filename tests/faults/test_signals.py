"""F8: a signal ends what is under way within a step or a batch, in every phase, and nothing that was trained is lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from riftcli import signals
from riftcli.errors import Interrupted, Terminated


def run_digests(run: Path) -> dict[str, str]:
    """Digests of everything that the last checkpoint of a run holds."""
    newest = max((run / "last").glob("step-????????"))
    return json.loads((newest / "manifest.json").read_text())["sha256"]


def wanted(run: Path) -> dict[str, str]:
    return {name: digest for name, digest in run_digests(run).items() if name != "state.json"}  # which has times in it


# ---- the module itself


def test_a_signal_raises_where_it_comes():
    with pytest.raises(Terminated, match="stopped by SIGUSR1"), signals.handled():
        os.kill(os.getpid(), signal.SIGUSR1)
        time.sleep(5)
    with pytest.raises(KeyboardInterrupt), signals.handled():
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)


def test_a_deferred_signal_waits_for_the_end_of_the_block():
    before = signal.getsignal(signal.SIGTERM)
    done = []
    with pytest.raises(Terminated, match="stopped by SIGTERM"), signals.handled(), signals.deferred():
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)  # the same at once: a scheduler tells the launcher and its workers
        done.append(signals.received())
    assert done == [signal.SIGTERM]
    assert signal.getsignal(signal.SIGTERM) is before
    assert signals.received() is None


def test_the_exception_says_which_it_was():
    with pytest.raises(Interrupted), signals.handled():
        try:
            with signals.deferred():
                os.kill(os.getpid(), signal.SIGINT)
                raise signals.stopped("after step 3")
        except Interrupted as error:
            assert error.exit_code == 130
            raise


def test_nohup_is_respected():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals.handled():
            os.kill(os.getpid(), signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_the_second_one_ends_it_at_once(tmp_path):
    code = """
import os, signal, time
from riftcli import signals
with signals.handled(), signals.deferred():
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(signals.SAME + 0.2)
    print("still here", flush=True)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(30)
    print("too late", flush=True)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=25)
    assert (done.returncode, done.stdout) == (-signal.SIGTERM, "still here\n")
    assert "SIGTERM: finishing this step, then saving; once more ends it at once" in done.stderr


# ---- a run


PHASES = {
    "encoding, before anything was trained": ("riftcli.training.setup", "_pretrained"),
    "the head": ("riftcli.training.setup", "start_head"),
    "the report": ("riftcli.training.finetune", "final_report"),
}


@pytest.mark.parametrize(
    ("phase", "number"),
    [
        ("encoding, before anything was trained", signal.SIGTERM),
        ("encoding, before anything was trained", signal.SIGINT),
        ("the head", signal.SIGHUP),
        ("the report", signal.SIGTERM),
        ("the report", signal.SIGINT),
    ],
)
def test_in_the_phases_around_the_loop(rift, tiny_recipe, write_recipe, monkeypatch, phase, number):
    import importlib

    module, name = PHASES[phase]
    place = importlib.import_module(module)
    real, calls = getattr(place, name), []

    def hit(*arguments, **options):
        if not calls:
            calls.append(1)
            os.kill(os.getpid(), number)
            time.sleep(20)
        return real(*arguments, **options)

    monkeypatch.setattr(place, name, hit)
    tiny_recipe["train"]["epochs"] = 1
    recipe, began = write_recipe(tiny_recipe), time.monotonic()
    code, _, err = rift("finetune", "--recipe", recipe, "--out", "r")
    assert time.monotonic() - began < 15
    assert code == (130 if number == signal.SIGINT else 143), err
    if phase != "the report":
        assert not Path("r").exists(), "nothing was trained, so nothing is left"
        return
    assert json.loads(Path("r/run.json").read_text())["status"] == "interrupted"
    if number != signal.SIGINT:
        assert err.splitlines()[-1] == f"error: stopped by {number.name}; go on with --resume r"
    assert rift("finetune", "--resume", "r")[0] == 0
    assert json.loads(Path("r/run.json").read_text())["status"] == "completed"


@pytest.mark.parametrize("where", ["in a step", "while it validates", "while it follows the retention sets"])
def test_in_the_loop_everything_is_saved(rift, tiny_recipe, write_recipe, monkeypatch, where):
    """Stopped in the middle of epoch 2, or after its last step while it is evaluated: the resumed run ends bitwise as one that
    was never stopped.
    """
    from riftcli.evaluation import features
    from riftcli.training import loop

    tiny_recipe["model"]["drop_path"] = 0.3
    tiny_recipe["train"] |= {"epochs": 3, "ema": 0.9}
    tiny_recipe["eval"] |= {"trajectory": True}
    tiny_recipe["retention"] = [
        {"format": "digits", "train": {"from": "train", "limit": 40}, "test": {"from": "test", "limit": 40}}
    ]
    recipe = write_recipe(tiny_recipe)
    assert rift("finetune", "--recipe", recipe, "--out", "whole")[0] == 0

    step, calls = loop.set_lr, {"steps": 0, "encodings": 0}

    def hit_step(*arguments):
        calls["steps"] += 1
        if where == "in a step" and calls["steps"] == 6:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(*arguments)

    encode = features.encode

    def hit_encoding(*arguments, **options):
        if calls["steps"] == 8:  # the last of epoch 2
            calls["encodings"] += 1
        if calls["encodings"] == {"while it validates": 1, "while it follows the retention sets": 2}.get(where):
            os.kill(os.getpid(), signal.SIGTERM)
            calls["encodings"] = 100
        return encode(*arguments, **options)

    monkeypatch.setattr(loop, "set_lr", hit_step)
    monkeypatch.setattr(features, "encode", hit_encoding)
    code, _, err = rift("finetune", "--recipe", recipe, "--out", "cut")
    step_reached = 6 if where == "in a step" else 8
    assert (code, err.splitlines()[-1]) == (143, f"error: stopped by a signal after step {step_reached}; go on with --resume cut")
    state = json.loads(Path(f"cut/last/step-{step_reached:08d}/state.json").read_text())
    assert state["progress"]["unvalidated"] is (where != "in a step")
    code, _, err = rift("finetune", "--resume", "cut")
    assert code == 0, err
    assert wanted(Path("cut")) == wanted(Path("whole"))

    def rows(run: str) -> list[dict]:
        found = [json.loads(line) for line in Path(run, "metrics.jsonl").read_text().splitlines()]
        return [{key: value for key, value in row.items() if key != "images_per_second"} for row in found]

    assert rows("cut") == rows("whole")
    read = [json.loads(Path(run, "metrics.json").read_text()) for run in ("cut", "whole")]
    assert read[0]["metrics"] == read[1]["metrics"] and read[0]["validation"] == read[1]["validation"]


def test_the_first_ctrl_c_saves(rift, tiny_recipe, write_recipe, monkeypatch):
    from riftcli.training import loop

    real, calls = loop.set_lr, {"n": 0}

    def hit(*arguments):
        calls["n"] += 1
        if calls["n"] == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return real(*arguments)

    monkeypatch.setattr(loop, "set_lr", hit)
    code, _, err = rift("finetune", "--recipe", write_recipe(tiny_recipe), "--out", "r")
    assert (code, err.splitlines()[-1]) == (130, "error: stopped by a signal after step 3; go on with --resume r")
    assert "Ctrl-C: finishing this step, then saving; once more ends it at once" in err
    assert Path("r/last/step-00000003").is_dir()


def test_an_evaluation_ends_at_once(rift, tiny_recipe, write_recipe, monkeypatch):
    from riftcli.evaluation import features

    tiny_recipe["train"]["epochs"] = 1
    assert rift("finetune", "--recipe", write_recipe(tiny_recipe), "--out", "r")[0] == 0
    before = sorted(path for path in Path("r").rglob("*"))

    def hit(*arguments, **options):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(20)

    monkeypatch.setattr(features, "encode", hit)
    for command in (["knn"], ["similarity"], ["eval"], ["retrieval"]):
        began = time.monotonic()
        code, _, err = rift(*command, "--run", "r")
        assert (code, err.splitlines()[-1]) == (143, "error: stopped by SIGTERM"), command
        assert time.monotonic() - began < 10
    assert sorted(path for path in Path("r").rglob("*")) == before


# ---- launch.max_time, launch.save_every_minutes


def test_the_time_is_up(rift, tiny_recipe, write_recipe, monkeypatch):
    from riftcli.training import state

    tiny_recipe["train"]["epochs"] = 3
    recipe = write_recipe(tiny_recipe)
    assert rift("finetune", "--recipe", recipe, "--out", "whole")[0] == 0
    calls = {"n": 0}

    def late(self):
        calls["n"] += 1
        return calls["n"] == 6

    monkeypatch.setattr(state.TrainState, "out_of_time", late)
    code, _, err = rift("finetune", "--recipe", recipe, "--out", "cut", "--max-time", "0:10")
    assert code == 143, err
    assert "; go on with --resume cut" in err.splitlines()[-1]
    assert json.loads(Path("cut/run.json").read_text())["status"] == "interrupted"
    code, _, err = rift("finetune", "--resume", "cut", "--max-time", "1:00", "--save-every-minutes", 5)
    assert code == 0, err
    assert wanted(Path("cut")) == wanted(Path("whole"))


def test_max_time_is_of_the_clock(rift, tiny_recipe, write_recipe):
    tiny_recipe["train"]["epochs"] = 3
    code, _, err = rift("finetune", "--recipe", write_recipe(tiny_recipe), "--out", "r", "--max-time", "0:00")
    assert (code, err.splitlines()[-1]) == (143, "error: stopped by launch.max_time 0:00 after step 1; go on with --resume r")
    code, _, err = rift("finetune", "--recipe", write_recipe(tiny_recipe), "--out", "s", "--max-time", "ten minutes")
    said = "launch.max_time: expected hours and minutes, as 7:50, got 'ten minutes' (text)"
    assert (code, err) == (2, f'error: --set launch.max_time="ten minutes": {said}\n')


def test_saved_by_the_clock(rift, tiny_recipe, write_recipe):
    tiny_recipe["train"] |= {"epochs": 1}
    recipe = write_recipe(tiny_recipe)
    assert rift("finetune", "--recipe", recipe, "--out", "r", "--save-every-minutes", "0.000001")[0] == 0
    assert {path.name for path in Path("r/last").iterdir()} == {"step-00000003", "step-00000004"}
    assert rift("finetune", "--recipe", recipe, "--out", "s")[0] == 0
    assert {path.name for path in Path("s/last").iterdir()} == {"step-00000004"}
