"""Several machines: two groups of processes that only share an address and a folder; a machine that is lost and comes back."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_processes import start, wait_until, workers_of

__all__ = ["start"]  # the fixture


@pytest.fixture
def port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def steps(run: Path) -> list[int]:
    lines = (run / "metrics.jsonl").read_text().splitlines() if (run / "metrics.jsonl").is_file() else []
    return [row["step"] for row in map(json.loads, lines) if row["kind"] == "step"]


@pytest.fixture
def node(start, tmp_path, port):
    """Start one of two machines with `rift finetune ARGUMENTS`, in r."""

    def begin(*arguments: object) -> subprocess.Popen:
        where = ["--nnodes", 2, "--rdzv-endpoint", f"127.0.0.1:{port}"]
        return start("riftcli", "finetune", *arguments, *where, "--device", "cpu", "--oversubscribe")

    return begin


def test_two_machines_of_two_processes_are_one(tiny_recipe, write_recipe, tmp_path, node, rift):
    """The weights are those of one process; one rank alone writes."""
    tiny_recipe["train"] |= {"epochs": 1, "head_init": "zeros"}
    tiny_recipe["optim"]["name"] = "sgd"  # Adam's first steps are signs, which rounding turns
    recipe = write_recipe(tiny_recipe)
    nodes = [node("--recipe", recipe, "--out", "r", "--nproc-per-node", 2) for _ in range(2)]
    said = [one.communicate(timeout=240)[1] for one in nodes]
    assert [one.returncode for one in nodes] == [0, 0], said
    assert sum("run folder: r" in text for text in said) == 1, "one rank talks"
    record = json.loads((tmp_path / "r/run.json").read_text())
    assert record["status"] == "completed" and record["env"]["world_size"] == 4
    assert sorted(path.name for path in (tmp_path / "r/logs").iterdir()) == ["rank1.log", "rank2.log", "rank3.log"]
    assert rift("finetune", "--recipe", recipe, "--out", "one")[0] == 0
    four, one = (load_file(tmp_path / run / "model/model.safetensors") for run in ("r", "one"))
    for name, value in one.items():
        torch.testing.assert_close(four[name], value, rtol=1e-4, atol=1e-5, msg=name)


def test_a_machine_is_lost_and_comes_back(tiny_recipe, write_recipe, tmp_path, node):
    """The other one ends, and both go on where the last checkpoint was."""
    tiny_recipe["train"] |= {"epochs": 40, "save_every_steps": 2}
    recipe = write_recipe(tiny_recipe)
    nodes = [node("--recipe", recipe, "--out", "r", "--nproc-per-node", 1) for _ in range(2)]
    wait_until(lambda: len(steps(tmp_path / "r")) > 6)
    lost, kept = nodes if 0 not in workers_of(nodes[0].pid) else nodes[::-1]
    for pid in [lost.pid, *workers_of(lost.pid).values()]:
        os.kill(pid, signal.SIGKILL)
    assert kept.wait(timeout=120) != 0
    assert json.loads((tmp_path / "r/run.json").read_text())["status"] != "completed"
    again = [node("--resume", "r", "--nproc-per-node", 1) for _ in range(2)]
    said = [one.communicate(timeout=240)[1] for one in again]
    assert [one.returncode for one in again] == [0, 0], said
    assert steps(tmp_path / "r") == list(range(1, 161)), "every step once"
    assert any("resuming after step " in text for text in said)
    assert json.loads((tmp_path / "r/run.json").read_text())["status"] == "completed"
