"""Runs that are watched: every line of the log arrives, a resumed run continues, and a tracker that fails takes nothing."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from riftcli.training.watching import values_of


def rows_of(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def scalars(run: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_tensorboard_has_every_number_of_the_log_and_goes_on_after_a_stop(rift, tiny_recipe, write_recipe):
    pytest.importorskip("tensorboard")
    tiny_recipe["train"] |= {"track": ["tensorboard"], "save_every_steps": 1, "epochs": 2}
    recipe = write_recipe(tiny_recipe)
    code, _, err = rift("finetune", "--recipe", recipe, "--out", "run")
    assert code == 0, err
    expected: dict[str, list] = {}
    for row in rows_of(Path("run")):
        for name, value in values_of(row).items():
            expected.setdefault(name, []).append((row["step"], pytest.approx(value, rel=1e-6)))
    found = scalars(Path("run"))
    assert {"train/loss", "train/lr", "validation/acc"} <= set(found)
    assert found == expected


def test_a_resumed_run_continues_its_curve_without_doubled_points(rift, tiny_recipe, write_recipe, monkeypatch):
    pytest.importorskip("tensorboard")
    tiny_recipe["train"] |= {"track": ["tensorboard"], "epochs": 2}
    recipe = write_recipe(tiny_recipe)
    from riftcli.training import loop

    original, calls = loop.save, []

    def once(state):  # the first epoch is saved; the process "dies" in the second, behind the checkpoint
        calls.append(state)
        original(state)

    monkeypatch.setattr(loop, "save", once)
    step_row = loop._step_row

    def dies(state, *args, **kwargs):
        if len(calls) == 1 and state.progress.step == 6:
            raise KeyboardInterrupt
        return step_row(state, *args, **kwargs)

    monkeypatch.setattr(loop, "_step_row", dies)
    assert rift("finetune", "--recipe", recipe, "--out", "run")[0] == 130
    run = Path("run").resolve()
    monkeypatch.undo()
    code, _, err = rift("finetune", "--resume", run)
    assert code == 0, err
    steps = [step for step, _ in scalars(run)["train/loss"]]
    assert steps == [row["step"] for row in rows_of(run) if row["kind"] == "step"] == list(range(1, 9))


class FakeService:
    """What wandb and trackio have in common."""

    def __init__(self) -> None:
        self.opened: list[dict] = []
        self.logged: list[tuple[int, dict]] = []
        self.finished = 0

    def module(self, broken: bool = False, closed: bool = False) -> SimpleNamespace:
        def init(project, name=None, config=None, id=None, resume=None, dir=None):
            if closed:
                raise ConnectionError("not logged in")
            self.opened.append({"project": project, "name": name, "config": config, "id": id, "resume": resume})
            return SimpleNamespace()

        def log(values, step=None):
            if broken:
                raise ConnectionError("no route to host")
            self.logged.append((step, values))

        def finish():
            self.finished += 1

        return SimpleNamespace(init=init, log=log, finish=finish)


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_service_with_wandb_s_interface_gets_every_line(rift, tiny_recipe, write_recipe, monkeypatch, name):
    service = FakeService()
    monkeypatch.setitem(sys.modules, name, service.module())
    tiny_recipe["train"] |= {"track": [name], "epochs": 1}
    code, _, err = rift("finetune", "--recipe", write_recipe(tiny_recipe), "--out", "run")
    assert code == 0, err
    assert [(step, values) for step, values in service.logged] == [(row["step"], values_of(row)) for row in rows_of(Path("run"))]
    (opened,) = service.opened
    assert (opened["project"], opened["name"], opened["resume"]) == ("riftcli", "run", None)
    assert opened["config"]["optim"]["lr"] == 1e-3
    assert service.finished == 1


def test_a_service_that_fails_is_told_once_and_takes_nothing_from_the_run(
    rift, tiny_recipe, write_recipe, monkeypatch, read_json
):
    service = FakeService()
    monkeypatch.setitem(sys.modules, "wandb", service.module(broken=True))
    tiny_recipe["train"] |= {"track": ["wandb"], "epochs": 1}
    code, _, err = rift("finetune", "--recipe", write_recipe(tiny_recipe), "--out", "run")
    assert code == 0, err
    assert err.count("warning: train.track wandb: ConnectionError: no route to host; the run goes on without it") == 1
    assert read_json("run/run.json")["status"] == "completed"


def test_a_service_that_does_not_open_takes_nothing_either(rift, tiny_recipe, write_recipe, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", FakeService().module(closed=True))
    tiny_recipe["train"] |= {"track": ["wandb"], "epochs": 1}
    code, _, err = rift("finetune", "--recipe", write_recipe(tiny_recipe), "--out", "run")
    assert code == 0, err
    assert err.count("warning: train.track wandb: ConnectionError: not logged in; the run goes on without it") == 1


def test_a_run_has_an_id_of_its_own_and_keeps_it_when_it_goes_on(tmp_path):
    from riftcli.training.trackers.wandb_like import Session

    ids = []
    for begun, step in (("2026-01-01T00:00:00Z", 0), ("2026-01-01T00:00:00Z", 5), ("2026-01-02T00:00:00Z", 0)):
        (tmp_path / "run.json").write_text(json.dumps({"created": begun, "pid": 1}))
        service = FakeService()
        Session(service.module(), tmp_path, {}, step)
        ids.append((service.opened[0]["id"], service.opened[0]["resume"]))
    assert ids[0][0] == ids[1][0] != ids[2][0]
    assert [resume for _, resume in ids] == [None, "allow", None]


def test_wandb_itself_offline(rift, tiny_recipe, write_recipe, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    tiny_recipe["train"] |= {"track": ["wandb"], "epochs": 1}
    code, _, err = rift("finetune", "--recipe", write_recipe(tiny_recipe), "--out", "run")
    assert code == 0, err
    assert "train.track" not in err
    assert list(Path("run/wandb").glob("offline-run-*"))


def test_a_tracker_that_is_not_installed_is_one_line(rift, tiny_recipe, write_recipe, monkeypatch):
    monkeypatch.setitem(sys.modules, "trackio", None)
    tiny_recipe["train"]["track"] = ["trackio"]
    code, _, err = rift("finetune", "--recipe", write_recipe(tiny_recipe), "--out", "run")
    assert (code, err) == (5, "error: train.track trackio needs it installed: pip install trackio\n"), "before data is read"
    assert not Path("run").exists()


def test_what_is_no_finite_number_is_no_point():
    row = {"kind": "eval", "step": 3, "epoch": 1, "split": "val", "acc": 0.5, "cka": None}
    assert values_of(row) == {"validation/epoch": 1.0, "validation/acc": 0.5}


def test_an_unknown_tracker_is_found_at_once(rift, tiny_recipe, write_recipe):
    tiny_recipe["train"]["track"] = ["wandbb"]
    code, _, err = rift("recipes", "validate", write_recipe(tiny_recipe))
    assert code == 2
    assert "train.track.0: unknown tracker 'wandbb' (did you mean 'wandb'?)" in err
