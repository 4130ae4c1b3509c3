"""F9, F10, F15: processes that die, are stopped or are left behind; nobody waits for ever, and nobody is left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest

from riftcli import heartbeat, launch
from riftcli.errors import EnvironmentError


def environment() -> dict[str, str]:
    """Ours, without what a launcher around the tests would have set."""
    dropped = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "TORCHELASTIC", "RIFT_")
    return {key: value for key, value in os.environ.items() if not key.startswith(dropped)} | {"OMP_NUM_THREADS": "1"}


def workers_of(pid: int) -> dict[int, int]:
    """Rank -> pid of the riftcli workers below a process."""
    found = {}
    for child in subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True).stdout.split():
        try:
            words = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        except OSError:
            continue
        rank = next((int(word[5:]) for word in words if word.startswith(b"RANK=")), None)
        if rank is not None:
            found[rank] = int(child)
    return found


def gone(pid: int) -> bool:
    """True for a process that is no more, or only a record of how it ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def wait_until(what, seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.1)


@pytest.fixture
def start(tmp_path) -> Iterator:
    """Start a command in tmp_path; whatever it leaves is killed when the test ends."""
    begun: list[subprocess.Popen] = []

    def go(*arguments: object) -> subprocess.Popen:
        words = [sys.executable, "-m", *map(str, arguments)]
        process = subprocess.Popen(
            words, cwd=tmp_path, env=environment(), stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        begun.append(process)
        return process

    yield go
    for process in begun:
        for pid in [*workers_of(process.pid).values(), process.pid]:
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)


@pytest.fixture
def two(start, tiny_recipe, write_recipe, tmp_path):
    """Two ranks that train for long; gives (the launcher, its workers) once they do."""

    def go(**launch: object) -> tuple[subprocess.Popen, dict[int, int]]:
        tiny_recipe["train"] |= {"epochs": 5000, "save_every_steps": 5}
        tiny_recipe["eval"]["every_epochs"] = 5000
        tiny_recipe["launch"] = launch
        where = ["--nproc-per-node", 2, "--device", "cpu"]
        process = start("riftcli", "finetune", "--recipe", write_recipe(tiny_recipe), "--out", "r", *where)
        metrics = tmp_path / "r/metrics.jsonl"
        wait_until(lambda: (metrics.is_file() and len(metrics.read_text().splitlines()) > 6) or process.poll() is not None)
        workers = workers_of(process.pid)
        assert set(workers) == {0, 1}, process.stderr.read() if process.poll() is not None else workers
        return process, workers

    return go


def status(run: Path) -> dict:
    return json.loads((run / "run.json").read_text())


def test_workers_die_with_their_launcher(two, tmp_path):
    process, workers = two()
    process.kill()
    wait_until(lambda: all(gone(pid) for pid in workers.values()), 60)
    assert status(tmp_path / "r")["status"] == "interrupted", "they were told, and saved"


def test_two_ranks_are_told_to_end_before_there_is_anything_to_keep(start, tiny_recipe, write_recipe, tmp_path):
    """While they encode: they end within a batch, leave nothing, and promise nothing."""
    tiny_recipe["data"]["train"]["limit"] = 1200
    tiny_recipe["eval"]["batch_size"] = 2  # encoding takes a while
    where = ["--nproc-per-node", 2, "--device", "cpu"]
    process = start("riftcli", "finetune", "--recipe", write_recipe(tiny_recipe), "--out", "r", *where)
    line = process.stderr.readline()
    while not line.startswith("data: classes in train"):  # what comes next is the encoding
        assert line, "it ended by itself"
        line = process.stderr.readline()
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert time.monotonic() - began < 20
    assert process.returncode == 143, err
    assert "error: stopped by SIGTERM, before anything was trained" in err.splitlines()
    assert "--resume" not in err and not (tmp_path / "r").exists()


def test_a_run_is_evaluated_while_it_trains(start, rift, tiny_recipe, write_recipe, tmp_path):
    """Its weights are replaced again and again meanwhile: whoever reads them finds whole files."""
    tiny_recipe["train"] |= {"epochs": 5000, "head_init": "zeros"}
    tiny_recipe["data"]["val"] = None  # then every epoch keeps its weights
    process = start("riftcli", "finetune", "--recipe", write_recipe(tiny_recipe), "--out", "r", "--device", "cpu")
    wait_until(lambda: (tmp_path / "r/model/manifest.json").is_file() or process.poll() is not None)
    digests = set()
    for command in (["knn", "--run", "r"], ["eval", "--run", "r"], ["similarity", "--run", "r", "--bootstrap", 0]) * 2:
        code, _, err = rift(*command)
        assert code == 0, (command, err)
        assert "still in progress" in err or "in progress" in err, err
        digests.add((tmp_path / "r/model/manifest.json").read_text())
    assert process.poll() is None, "it trained all the while"
    assert len(digests) > 1, "and kept other weights"


def test_rank_0_is_killed(two, tmp_path):
    process, workers = two()
    os.kill(workers[0], signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "error: rank 0: killed by signal 9 (log: r/train.log)" in err.splitlines()
    record = status(tmp_path / "r")
    assert (record["status"], record["error"]) == ("failed", "rank 0: killed by signal 9 (log: r/train.log)")


def test_a_stopped_rank_is_named(two, tmp_path):
    process, workers = two(timeout=10)
    os.kill(workers[1], signal.SIGSTOP)
    _, err = process.communicate(timeout=90)
    line = next(line for line in err.splitlines() if line.startswith("error: "))
    assert process.returncode == 5, err
    assert "no progress for 10 s: rank 1 on " in line and "(last word: " in line, line
    assert line.partition("what was saved is whole: ")[2].startswith("go on with --resume; launch.timeout waits longer")
    assert gone(workers[1])
    assert status(tmp_path / "r")["status"] == "failed"
    assert list((tmp_path / "r/last").glob("step-*/manifest.json"))


def test_a_rank_that_another_one_ended_is_not_the_cause(tmp_path, monkeypatch):
    """The launcher may look between the end of the rank that was stopped and that of the one that ended it."""
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "attempt_0/0/error.json"))
    monkeypatch.setattr(launch, "_rank_log", tmp_path / "train.log")
    monkeypatch.setattr(launch, "_ended", None)
    killed = SimpleNamespace(failures={1: SimpleNamespace(exitcode=-9, message="", timestamp=1)})
    logs = tmp_path / "r/logs"
    found = launch._root_cause(killed, logs, tmp_path)
    assert (str(found), found.exit_code) == (f"rank 1: killed by signal 9 (log: {logs}/rank1.log)", 1)
    launch.record_worker_error(EnvironmentError("lost connection"), "lost connection")
    assert "killed by signal 9" in str(launch._root_cause(killed, logs, tmp_path)), "what its peers died of is no cause"
    launch.record_worker_error(EnvironmentError("x"), "no progress for 10 s: rank 1 does not get on", ended=1)
    launch.record_worker_error(EnvironmentError("lost connection"), "lost connection")  # because of that, in another thread
    found = launch._root_cause(killed, logs, tmp_path)
    assert str(found) == f"rank 0: no progress for 10 s: rank 1 does not get on (log: {tmp_path}/train.log)"
    assert found.exit_code == 5
    killed.failures = {2: killed.failures[1]}
    assert "rank 2: killed by signal 9" in str(launch._root_cause(killed, logs, tmp_path)), "another one"


def test_who_is_waited_for():
    ranks = [heartbeat.Watched() for _ in range(3)]
    now = time.monotonic()
    for one in ranks:
        one.alive, one.moved = now, now - 20
    assert heartbeat.silent_rank(ranks, 30) is None
    ranks[2].moved = now - 25
    assert heartbeat.silent_rank(ranks, 10) == 2, "all show signs of life: who got on least lately"
    ranks[1].alive = now - 19
    assert heartbeat.silent_rank(ranks, 10) == 1, "no sign of life"
    ranks[0].moved = now
    assert heartbeat.silent_rank(ranks, 10) is None, "somebody gets on"


def test_a_restarted_group_goes_on_with_its_run(start, tiny_recipe, write_recipe, tmp_path):
    """torchrun --max-restarts 1, rank 1 killed once (F10): the run goes on from its last checkpoint, without a row twice."""
    tiny_recipe["train"] |= {"epochs": 20, "save_every_steps": 5}
    tiny_recipe["eval"]["every_epochs"] = 20
    torchrun = ["torch.distributed.run", "--nproc-per-node", 2, "--max-restarts", 1, "--standalone"]
    command = ["-m", "riftcli", "finetune", "--recipe", write_recipe(tiny_recipe), "--out", "r", "--device", "cpu"]
    process = start(*torchrun, *command)
    metrics = tmp_path / "r/metrics.jsonl"
    wait_until(lambda: (metrics.is_file() and len(metrics.read_text().splitlines()) > 12) or process.poll() is not None)
    os.kill(workers_of(process.pid)[1], signal.SIGKILL)
    _, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    steps = [row["step"] for row in map(json.loads, metrics.read_text().splitlines()) if row["kind"] == "step"]
    assert steps == list(range(1, 81))
    assert "resuming after step " in (tmp_path / "r/train.log").read_text()
    assert status(tmp_path / "r")["status"] == "completed"


# ---- data workers


@pytest.mark.parametrize("how", ["stopped", "killed"])
def test_a_data_worker_is_lost(how, rift, tiny_recipe, write_recipe, monkeypatch):
    from torch.utils.data import get_worker_info

    from riftcli.data.loader import ImageDataset

    real = ImageDataset.__getitem__

    def lost(dataset, item):
        if get_worker_info() is not None and dataset.split.ids[item[1] % len(dataset)] == dataset.split.ids[40]:
            os.kill(os.getpid(), signal.SIGSTOP if how == "stopped" else signal.SIGKILL)
        return real(dataset, item)

    monkeypatch.setattr(ImageDataset, "__getitem__", lost)
    tiny_recipe["train"] |= {"workers": 2, "epochs": 1}
    tiny_recipe["augment"] = {"flip": 0.5}
    tiny_recipe["launch"] = {"timeout": 3.0}
    tiny_recipe["eval"]["batch_size"] = 64  # small enough splits are read without workers
    began = time.monotonic()
    code, _, err = rift("finetune", "--recipe", write_recipe(tiny_recipe), "--out", "r")
    assert time.monotonic() - began < 40
    line = next(line for line in err.splitlines() if line.startswith("error: "))
    assert (code, "Traceback" in err) == (5, False), err
    if how == "stopped":
        assert " did not come: a data worker gave none for 3 s (process " in line and " (stopped)); " in line
        assert line.startswith("error: batch ")
    else:
        assert "a data worker was killed (out of memory?)" in line
    assert line.endswith("fewer train.workers need less memory, train.workers=0 has none")


@pytest.mark.parametrize("error", [ConnectionResetError(104, "reset"), BrokenPipeError(32, "broken"), EOFError()])
def test_a_worker_says_nothing_of_a_rank_that_has_ended_meanwhile(capsys, error):
    """The other worker may be handing something over just then; what is wrong with it is said as ever."""
    from riftcli.data.loader import _say_unless_gone

    _say_unless_gone(type(error), error, None)
    assert capsys.readouterr().err == ""
    _say_unless_gone(ValueError, ValueError("of its own"), None)
    assert "ValueError: of its own" in capsys.readouterr().err


# ---- too many


def test_more_processes_than_cores(rift, tiny_recipe, write_recipe, monkeypatch):
    from riftcli.data import memory, parallel

    recipe = write_recipe(tiny_recipe)
    monkeypatch.setattr(parallel, "cores", lambda: 2)
    code, _, err = rift(
        "finetune", "--recipe", recipe, "--out", "r", "--nproc-per-node", 64, "--device", "cpu", "--set", "train.batch_size=64"
    )
    assert (code, err) == (
        2,
        "error: --nproc-per-node 64: this process may use 2 CPU cores, and more processes than that are slower; use at most 2, "
        "or --oversubscribe where it is meant\n",
    )
    monkeypatch.setattr(memory, "free_memory", lambda: 10**8)
    code, _, err = rift("finetune", "--recipe", recipe, "--out", "r", "--nproc-per-node", 2, "--device", "cpu")
    assert code == 2 and err.startswith(
        "error: --nproc-per-node 2: would need about 0.8 GB, and 0.1 GB are free; use fewer processes, or "
    )
    assert not Path("r").exists()


def test_the_estimate_of_memory(tiny_recipe, write_recipe):
    from riftcli import recipe as recipes
    from riftcli.data import memory
    from riftcli.models.backbone import Backbone
    from riftcli.training.cost import PROCESS, process_memory

    recipe = recipes.load(str(write_recipe(tiny_recipe)))
    weights = sum(p.numel() for p in Backbone(**recipe.model.model_dump()).build().parameters())
    assert process_memory(recipe) == PROCESS + 5 * 4 * weights
    shared = recipes.load(str(write_recipe({**tiny_recipe, "adapter": {"name": "lora"}})), ["train.shard_frozen=true"])
    assert process_memory(shared) == PROCESS + 4 * weights
    assert memory.free_memory() is None or memory.free_memory() > 10**7
