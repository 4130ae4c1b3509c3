"""F1, F2, F16, F17, F24: what a run resumes from is whole and is its own, or it is set aside and the one before it is used."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
import stat
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from riftcli.training import checkpoint


def sign(folder: Path) -> None:
    """Make the manifest fit what lies there, as somebody would who wants it to be believed."""
    names = [path.name for path in folder.iterdir() if path.name != "manifest.json" and path.is_file()]
    digests = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}
    (folder / "manifest.json").write_text(json.dumps({"step": int(folder.name[5:]), "sha256": digests}))


def change_state(**changes):
    def change(folder: Path) -> None:
        state = json.loads((folder / "state.json").read_text())
        state["progress"] |= changes
        (folder / "state.json").write_text(json.dumps(state))

    return change


def change_tensors(file: str, change):
    def apply(folder: Path) -> None:
        tensors = load_file(folder / f"{file}.safetensors")
        save_file(change(tensors), folder / f"{file}.safetensors")

    return apply


def _nan(tensors):
    key = next(iter(tensors))
    return {**tensors, key: torch.full_like(tensors[key], float("nan"))}


def _first(tensors, value):
    key = next(iter(tensors))
    return {**tensors, key: value(tensors[key])}


class Payload:
    def __reduce__(self):
        return (os.system, ("touch payload-ran",))


def _deep(folder: Path) -> None:
    (folder / "state.json").write_text('{"progress": ' * 100_000 + "1" + "}" * 100_000)


def _outside(folder: Path) -> None:
    """A manifest that lists the files and one outside."""
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["sha256"]["../../run.json"] = hashlib.sha256((folder.parent.parent / "run.json").read_bytes()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))


TAMPERED = {  # what is done, and whether the manifest is signed anew afterwards
    "weights that are not finite": (change_tensors("model", _nan), True),
    "weights of another dtype": (change_tensors("model", lambda t: _first(t, torch.Tensor.half)), True),
    "weights of another shape": (change_tensors("model", lambda t: _first(t, lambda v: v[..., :1].contiguous())), True),
    "a tensor is missing": (change_tensors("model", lambda t: dict(list(t.items())[1:])), True),
    "a tensor too many": (change_tensors("penalty", lambda t: {**t, "more": torch.zeros(1)}), True),
    "an empty optimizer": (change_tensors("optimizer", lambda t: {}), True),
    "step -5": (change_state(step=-5), True),
    "step 1e9": (change_state(step=10**9), True),
    "a text for a number": (change_state(best_value="best"), True),
    "an unknown key": (change_state(owner="me"), True),
    "no progress": (lambda folder: (folder / "state.json").write_text('{"world_size": 1}'), True),
    "deep JSON": (_deep, True),
    "a pickle": (lambda folder: (folder / "model.safetensors").write_bytes(pickle.dumps(Payload())), True),
    "a manifest that lists nothing": (lambda f: (f / "manifest.json").write_text('{"step": 8, "sha256": {}}'), False),
    "a manifest that lists a path outside": (_outside, False),
    "a manifest of another step": (lambda f: (f / "manifest.json").write_text('{"step": 7, "sha256": {}}'), False),
    "a manifest that is a pipe": (lambda f: ((f / "manifest.json").unlink(), os.mkfifo(f / "manifest.json")), False),
    "a file that is not listed": (lambda f: (f / "more.safetensors").write_bytes(b""), False),
}


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory, tiny_recipe_of):
    """A run of two epochs with checkpoints at steps 4 and 8, which has not been evaluated; and the finished one."""
    import yaml

    from riftcli import cli

    folder = tmp_path_factory.mktemp("interrupted")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(tiny_recipe_of()))
    assert cli.run(["finetune", "--recipe", str(folder / "tiny.yaml"), "--out", str(folder / "whole")]) == 0
    shutil.copytree(folder / "whole", folder / "r")
    (folder / "r/metrics.json").unlink()
    record = json.loads((folder / "r/run.json").read_text())
    (folder / "r/run.json").write_text(json.dumps({**record, "status": "interrupted"}))
    return folder


@pytest.mark.parametrize("case", TAMPERED)
def test_what_was_tampered_with_is_not_used(interrupted, rift, tmp_path, monkeypatch, case):
    from riftcli.errors import Terminated
    from riftcli.training import finetune

    def stop(state):
        raise Terminated("enough")

    whole_way = case in ("a tensor is missing", "a pickle")
    if not whole_way:
        monkeypatch.setattr(finetune, "run_loop", stop)
    shutil.copytree(interrupted / "r", "r")
    change, signed = TAMPERED[case]
    newest = Path("r/last/step-00000008")
    change(newest)
    if signed:
        sign(newest)
    code, _, err = rift("finetune", "--resume", "r")
    assert code == (0 if whole_way else 143), err
    lines = [line for line in err.splitlines() if "damaged checkpoint" in line]
    assert len(lines) == 1 and lines[0].startswith("warning: r/last/step-00000008: damaged checkpoint ("), err
    assert lines[0].endswith("; set aside as step-00000008.damaged, falling back to the one before it")
    assert "resuming after step 4 of 8" in err and "Traceback" not in err
    assert Path("r/last/step-00000008.damaged").is_dir()
    assert not (tmp_path / "payload-ran").exists()
    if not whole_way:
        return
    mine, whole = (load_file(run / "last/step-00000008/model.safetensors") for run in (Path("r"), interrupted / "whole"))
    assert all(torch.equal(mine[name], whole[name]) for name in whole), "it ends as it would have"


def test_damage_twice_at_the_same_step(tmp_path):
    for _ in range(3):
        checkpoint.save(tmp_path, 1, {"model": {"w": torch.zeros(3)}}, {})
        checkpoint.save(tmp_path, 2, {"model": {"w": torch.zeros(3)}}, {})
        (tmp_path / "step-00000002/model.safetensors").write_bytes(b"")
        checkpoint.load_newest(tmp_path, lambda line: None)
    assert {path.name for path in tmp_path.glob("*.damaged*")} == {
        "step-00000002.damaged",
        "step-00000002.damaged-2",
        "step-00000002.damaged-3",
    }


def test_files_have_the_mode_that_the_umask_asks_for(interrupted):
    plain = 0o666 & ~checkpoint.files._UMASK
    for path in [*(interrupted / "whole/last").rglob("*"), *(interrupted / "whole/model").rglob("*")]:
        if path.is_file():
            assert stat.S_IMODE(path.stat().st_mode) == plain, path


# ---- model/: the kept weights


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("file", ["model.safetensors", "config.json"])
def test_one_bit_of_the_kept_weights_is_told(interrupted, rift, file, tmp_path):
    shutil.copytree(interrupted / "whole", "r")
    _flip(Path("r/model") / file)
    said = f"r/model/{file}: is damaged: not what was written (sha256 in manifest.json); put it back from a copy, or train again"
    from PIL import Image

    Image.new("L", (8, 8)).save(tmp_path / "x.png")
    for command in (["eval", "--run", "r"], ["knn", "--run", "r"], ["predict", "r", "x.png"], ["similarity", "--run", "r"]):
        code, _, err = rift(*command)
        assert code == 4 and said in err, (command, err)
    assert rift("finetune", "--resume", "r")[0] == 0, "finished: nothing is read"
    record = json.loads(Path("r/run.json").read_text())
    Path("r/run.json").write_text(json.dumps({**record, "status": "interrupted"}))
    code, _, err = rift("finetune", "--resume", "r")
    assert code == 8 and "--resume r: the weights of its best epoch (" in err and said in err
    (Path("r/model") / file).unlink()
    code, _, err = rift("finetune", "--resume", "r")
    assert code == 8 and f"r/model/{file}: is gone" in err, err


@pytest.mark.parametrize("command", [["report", "r"], ["eval", "--run", "r"], ["knn", "--run", "r"]])
def test_weights_of_no_bytes(interrupted, rift, command):
    shutil.copytree(interrupted / "whole", "r")
    Path("r/model/model.safetensors").write_bytes(b"")
    code, _, err = rift(*command)
    assert (code, "Traceback" in err) == (4, False), err
    assert "r/model/model.safetensors: is empty (sha256 in manifest.json)" in err


def test_weights_without_a_manifest_are_read(interrupted, rift):
    """Older runs have none, nor have folders of other tools."""
    shutil.copytree(interrupted / "whole", "r")
    Path("r/model/manifest.json").unlink()
    assert rift("knn", "--run", "r")[0] == 0


def test_a_kill_while_weights_are_replaced_leaves_whole_files(tmp_path, monkeypatch):
    from riftcli.models import published

    def publish(text: str) -> None:
        with published.publishing(tmp_path / "m") as stage:
            for name in ("a.json", "b.json"):
                (stage / name).write_text(text)

    publish("old")
    real, calls = Path.replace, []

    for fatal in range(1, 5):

        def dies(path, target, fatal=fatal):
            calls.append(1)
            if len(calls) == fatal:
                raise KeyboardInterrupt
            return real(path, target)

        calls.clear()
        monkeypatch.setattr(Path, "replace", dies)
        with pytest.raises(KeyboardInterrupt):
            publish(f"new {fatal}")
        monkeypatch.setattr(Path, "replace", real)
        published.check_published(tmp_path / "m")  # each file is an old or a new one
    publish("last")
    assert json.loads((tmp_path / "m/manifest.json").read_text())["sha256"]["a.json"] == [hashlib.sha256(b"last").hexdigest()]


# ---- Q


def test_a_q_that_is_not_orthogonal_ends_the_run(rift, tiny_recipe, write_recipe, monkeypatch):
    from riftcli.functional import rotations

    error = {"value": 1e-4}
    monkeypatch.setattr(rotations.Rotation, "orthogonality_error", lambda self: torch.tensor(error["value"]))
    recipe = write_recipe(tiny_recipe)
    code, _, err = rift("finetune", "--recipe", recipe, "--out", "r")
    assert code == 0 and "warning: step 4: Q is orthogonal up to 0.0001 only" in err
    error["value"] = float("nan")
    code, _, err = rift("finetune", "--recipe", recipe, "--out", "s")
    assert code == 7
    assert err.splitlines()[-1].startswith(
        "error: step 4: Q is not orthogonal any more (max |Q^T Q - I| is nan), so the regularizer"
    )


def test_q_stays_orthogonal_over_a_thousand_steps():
    """F24, and the loss never falls below that of the best rotation: the distance of the sorted spectra."""
    from riftcli.functional.rotations import CayleyRotation

    torch.manual_seed(0)
    dim, rows = 12, 8  # fewer samples than features
    rotation = CayleyRotation(dim)
    optimizer = torch.optim.AdamW(rotation.parameters(), lr=0.02, weight_decay=0.1)
    sigma_0 = torch.cov(torch.randn(100, dim).T)
    for _ in range(1000):
        features = torch.randn(rows, dim)
        sigma = torch.cov(features.T)
        q = rotation.matrix()
        loss = (sigma - q.T @ sigma_0 @ q).square().sum()
        bound = (torch.linalg.eigvalsh(sigma) - torch.linalg.eigvalsh(sigma_0)).square().sum()
        assert float(loss) >= float(bound) * (1 - 1e-4)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(rotation.orthogonality_error()) < 1e-5


# ---- F1: killed at any point of a save


class Killed(BaseException):
    """What a SIGKILL is to a process: no handler of an Exception sees it."""


OPERATIONS = ("mkdir", "write_text", "rename", "replace", "unlink", "chmod")


def test_killed_at_every_point_of_a_save(tmp_path, monkeypatch):
    """The old checkpoints or the new one, never a mix: each operation on files, in turn, is the last."""
    checkpoint.save(tmp_path, 1, {"model": {"w": torch.full((3,), 1.0)}}, {"n": 1})
    fatal, reached = 0, True
    while reached:
        fatal, reached = fatal + 1, False
        counted = {"n": 0}

        def step(counted=counted, fatal=fatal):
            counted["n"] += 1
            if counted["n"] == fatal:
                raise Killed

        with monkeypatch.context() as patch:
            for name in OPERATIONS:
                real = getattr(Path, name)
                patch.setattr(Path, name, lambda *a, real=real, **o: (step(), real(*a, **o))[1])
            for place, name in ((shutil, "rmtree"), (checkpoint.files, "fsync"), (checkpoint, "write_tensors")):
                real = getattr(place, name)
                patch.setattr(place, name, lambda *a, real=real, **o: (step(), real(*a, **o))[1])
            try:
                checkpoint.save(tmp_path, 2, {"model": {"w": torch.full((3,), 2.0)}}, {"n": 2})
            except Killed:
                reached = True
        tensors, state = checkpoint.load_newest(tmp_path, pytest.fail)
        assert float(tensors["model"]["w"][0]) == state["n"], "tensors and state are of one checkpoint"
        assert state["n"] in (1, 2)
    assert fatal > 12 and state["n"] == 2
    checkpoint.save(tmp_path, 3, {"model": {"w": torch.full((3,), 3.0)}}, {"n": 3})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000002", "step-00000003"]
