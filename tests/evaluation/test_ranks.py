"""Two ranks answer as one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from evaluation_runs import CLOTHES, make_folder, read
from safetensors.torch import load_file

WORKER = Path(__file__).parent / "ranks_worker.py"
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def torchrun(arguments: list, where: Path) -> subprocess.CompletedProcess:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    line = [str(argument) for argument in [*TORCHRUN, *arguments]]
    done = subprocess.run(line, capture_output=True, text=True, timeout=300, env=environment, cwd=where)
    assert done.returncode == 0, done.stderr
    return done


def test_two_ranks_answer_as_one(run, tmp_path, few, rift):
    """The real torchrun: bank and queries, layers, gradients and losses are shared out and put together again; a map is fitted on
    one rank.
    """
    alone = tmp_path / "alone.yaml"  # one split on both sides: leave-one-out
    alone.write_text(
        yaml.safe_dump(
            {
                "model": {"name": "vit_tiny_patch16_224"},
                "data": {"format": "demo_fashion", "train": dict(CLOTHES), "test": dict(CLOTHES)},
            }
        )
    )
    folder, probe = make_folder(tmp_path), ["--probe", "--no-pretrained", "--few-shot", "3", "--data", few]
    wanted = {
        "knn": ["knn", "--k", "3,7", "--data", folder, "--data", few, "--data", alone],
        "similarity": ["similarity", "--layers", "all", "--metrics", "cka,rsa", "--bootstrap", "4"],
        "sharpness": ["sharpness"],
        "attention": ["attention", "--count", "3"],
        "retrieval": ["retrieval", "--backfill"],
        "probe": ["knn", *probe],
    }
    lines = {name: [*map(str, line), "--run", str(run), "--json"] for name, line in wanted.items()}
    align = ["align", "pretrained", str(run), "--epochs", "3", "--out"]
    commands = tmp_path / "commands.json"
    commands.write_text(json.dumps([*lines.items(), ("align", [*align, "two"])]))
    torchrun([WORKER, commands], tmp_path)
    for name, line in lines.items():
        code, out, err = rift(*line)
        assert code == 0, err
        one, two = read(out), read((tmp_path / f"{name}.json").read_text())
        assert (one["env"]["world_size"], two["env"]["world_size"]) == (1, 2)
        for part in ("rows", "layers", "backfill"):
            for left, right in zip(one.get(part, []), two.get(part, []), strict=True):
                close = {k: pytest.approx(v, rel=1e-4, abs=1e-6) if isinstance(v, float) else v for k, v in right.items()}
                assert left == close
    assert rift(*align, "one")[0] == 0
    one, two = (load_file(tmp_path / name / "map.safetensors") for name in ("one", "two"))
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, rtol=1e-4, atol=1e-6)


def test_a_command_under_torchrun(run, tmp_path, rift):
    """As people type it: without the `--`, torchrun would take --run for an option of its own."""
    line = ["similarity", "--run", str(run), "--metrics", "cka", "--bootstrap", "0", "--json"]
    done = torchrun(["-m", "riftcli", "--", *line], tmp_path)
    code, out, err = rift(*line)
    assert code == 0, err
    one, two = read(out), read(done.stdout)
    assert two["env"]["world_size"] == 2 and two["rows"][0]["value"] == pytest.approx(one["rows"][0]["value"], rel=1e-5)
