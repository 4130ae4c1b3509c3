"""Two ranks answer as one."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
import yaml
from evaluation_runs import CLOTHES, make_folder, read


def test_two_ranks_get_one_map(run, tmp_path):
    """It is fitted on one of them."""
    from safetensors.torch import load_file

    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "riftcli", "--"]
    found = []
    for name, start in (("one", ["-m", "riftcli"]), ("two", torchrun)):
        line = [*start, "align", "pretrained", str(run), "--epochs", "3", "--out", str(tmp_path / name)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run([sys.executable, *line], capture_output=True, text=True, timeout=300, env=environment, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        found.append(load_file(tmp_path / name / "map.safetensors"))
    for key, value in found[0].items():
        torch.testing.assert_close(found[1][key], value, rtol=1e-4, atol=1e-6)


def test_two_ranks_answer_as_one(run, tmp_path, few, rift):
    """The real torchrun: bank and queries, layers, gradients and losses are shared out and put together again."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    alone = tmp_path / "alone.yaml"  # one split on both sides: leave-one-out
    alone.write_text(
        yaml.safe_dump(
            {
                "model": {"name": "vit_tiny_patch16_224"},
                "data": {"format": "demo_fashion", "train": dict(CLOTHES), "test": dict(CLOTHES)},
            }
        )
    )
    wanted = {
        "knn": ["--k", "3,7", "--data", make_folder(tmp_path), "--data", str(few), "--data", str(alone)],
        "similarity": ["--layers", "all", "--metrics", "cka,rsa", "--bootstrap", "4"],
        "sharpness": [],
        "attention": ["--count", "3"],
        "retrieval": ["--backfill"],
    }
    for command, options in [*wanted.items(), ("knn", ["--probe", "--no-pretrained", "--few-shot", "3", "--data", str(few)])]:
        line = [command, "--run", str(run), "--json", *options]
        code, out, err = rift(*line)
        assert code == 0, err
        # without the `--`, torchrun takes --run for an option of its own
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "riftcli", "--"]
        done = subprocess.run([*torchrun, *line], capture_output=True, text=True, timeout=300, env=environment, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        one, two = read(out), read(done.stdout)
        assert (one["env"]["world_size"], two["env"]["world_size"]) == (1, 2)
        for name in ("rows", "layers", "backfill"):
            for left, right in zip(one.get(name, []), two.get(name, []), strict=True):
                close = {k: pytest.approx(v, rel=1e-4, abs=1e-6) if isinstance(v, float) else v for k, v in right.items()}
                assert left == close
