"""Trials as jobs of a scheduler: through submitit's own local executor (the same pickling, signals and queueing once more as on a
cluster), and on a Ray of this machine.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from riftcli.errors import UsageError
from riftcli.sweeps.folder import SweepFolder, standing
from riftcli.sweeps.jobs import run_jobs
from riftcli.sweeps.plan import read_plan
from riftcli.sweeps.pool import go_on
from riftcli.sweeps.slurm import Slurm

submitit = pytest.importorskip("submitit")
LocalJobEnvironment = pytest.importorskip("submitit.local.local").LocalJobEnvironment


@pytest.fixture
def opened(tmp_path, tiny_recipe, monkeypatch):
    """A maker of an open sweep folder with its plan."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.chdir(tmp_path)

    def make(epochs: int = 1, **keys):
        tiny_recipe["train"] |= {"epochs": epochs, "save_every_steps": 3}
        (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tiny_recipe, sort_keys=False))
        (tmp_path / "study.yaml").write_text(yaml.safe_dump({"recipe": "tiny.yaml", **keys}, sort_keys=False))
        plan = read_plan(tmp_path / "study.yaml", [])
        folder = SweepFolder(tmp_path / "out")
        folder.begin(plan)
        return plan, folder

    return make


def test_jobs_leave_ordinary_runs_and_failures_their_line(opened):
    lost = {"set": {"data": {"format": "image_folder", "root": "nowhere"}}}
    plan, folder = opened(rows={"full": {}, "lost": lost})
    told = []
    local = Slurm(folder.path, {"timeout_min": 60}, "local")
    run_jobs(local, folder, plan.trials, "cpu", False, lambda *seen: told.append(seen), go_on, poll=0.2)
    folder.close()
    assert {(trial.name, found.state) for trial, found, _ in told} == {("full/s0", "completed"), ("lost/s0", "failed")}
    assert "no such data folder" in standing(folder.path, "lost/s0").error
    assert json.loads((folder.path / "trials/full/s0/run.json").read_text())["status"] == "completed"


def test_a_pre_empted_job_resumes_bitwise(opened, monkeypatch):
    plan, folder = opened(epochs=60)
    interrupted = []
    done = submitit.LocalJob.done

    def interrupting(job, force_check=False):
        """Pre-empt once, as SLURM does: a signal to the job's own process, when the trial has saved a state."""
        if not interrupted and list(folder.path.glob("trials/all/s0/last/step-????????/manifest.json")):
            usual = LocalJobEnvironment._usr_sig()
            found = subprocess.run(
                ["pgrep", "-f", f"_submit .*{folder.path}/jobs"], capture_output=True, text=True
            ).stdout.split()
            for pid in found:
                if pid != str(job._process.pid):
                    os.kill(int(pid), usual)
                    interrupted.append(pid)
        return done(job, force_check)

    monkeypatch.setattr(submitit.LocalJob, "done", interrupting)
    local = Slurm(folder.path, {"timeout_min": 60}, "local")
    run_jobs(local, folder, plan.trials, "cpu", False, lambda *seen: None, go_on, poll=0.1)
    folder.close()
    assert interrupted
    run = folder.path / "trials/all/s0"
    record = json.loads((run / "run.json").read_text())
    assert record["status"] == "completed"
    assert "resumed" in record, "it went on, and did not begin again"
    alone = ["--recipe", "tiny.yaml", "--set", "train.seed=0", "--out", "alone", "--device", "cpu"]
    assert subprocess.run([sys.executable, "-m", "riftcli", "finetune", *alone]).returncode == 0
    assert (run / "model/model.safetensors").read_bytes() == Path("alone/model/model.safetensors").read_bytes()


def test_what_is_wrong_is_one_line(opened, rift):
    plan, folder = opened()
    with pytest.raises(UsageError) as caught:
        Slurm(folder.path, {"timeout_mn": 5}, "local")
    folder.close()
    assert "timeout_mn" in str(caught.value)
    code, _, err = rift("sweep", "study.yaml", "--out", "other", "--on", "slurm")
    assert (code, err.splitlines()[-1].startswith("error: --on slurm: ")) == (5, True), err
    assert rift("sweep", "study.yaml", "--on", "sge")[2] == "error: --on sge: expected local, slurm or ray\n"
    assert rift("sweep", "study.yaml", "--on", "slurm", "--jobs", "2")[0] == 2


def test_ray_runs_trials_as_tasks_and_one_that_is_given_up_saves(opened):
    pytest.importorskip("ray")
    from riftcli.sweeps.ray_cluster import Ray

    lost = {"set": {"data": {"format": "image_folder", "root": "nowhere"}}}
    plan, folder = opened(rows={"full": {}, "lost": lost, "long": {"set": {"train.epochs": 5000}}}, ray={"num_cpus": 0.5})
    told = []
    saved = folder.path / "trials/long/s0/last"
    scheduler = Ray(plan.ray, "cpu")
    try:
        run_jobs(
            scheduler,
            folder,
            plan.trials,
            "cpu",
            False,
            lambda *seen: told.append(seen),
            lambda trial: trial.row == "long" and any(saved.glob("step-????????/manifest.json")),
            poll=0.2,
        )
    finally:
        scheduler.close()
        folder.close()
    assert {(trial.name, found.state) for trial, found, _ in told} == {
        ("full/s0", "completed"),
        ("lost/s0", "failed"),
        ("long/s0", "pruned"),
    }
    assert "no such data folder" in standing(folder.path, "lost/s0").error
    record = json.loads((folder.path / "trials/long/s0/run.json").read_text())
    assert record["status"] == "interrupted", "it was told to stop, and said so itself"
    assert standing(folder.path, "long/s0").state == "pruned"
    assert not saved.exists()


def test_ray_refuses_options_that_it_does_not_have():
    pytest.importorskip("ray")
    from riftcli.sweeps.ray_cluster import Ray

    with pytest.raises(UsageError, match="sweep: ray: unknown option 'cpus'; allowed here: address, num_cpus"):
        Ray({"cpus": 2}, "cpu")
    with pytest.raises(UsageError, match=r"sweep: ray: num_cpus 1000: this machine has \d+$"):
        Ray({"num_cpus": 1000}, "cpu")
