"""The trials of a sweep in processes of their own: one for each GPU of this machine, one at a time on a CPU."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from riftcli.console import Stopwatch
from riftcli.errors import ExitCode, RiftError, Terminated
from riftcli.files import open_append
from riftcli.launch import DIE_WITH
from riftcli.runs.reader import read_json
from riftcli.sweeps.folder import Standing, SweepFolder, standing
from riftcli.sweeps.trial import Trial

TRIES = 3  # of a trial that something killed; it resumes
POLL = 0.2  # seconds


@dataclass
class _Running:
    process: subprocess.Popen
    trial: Trial
    slot: str | None
    clock: Stopwatch
    log_start: int  # bytes that earlier attempts left in the log
    given_up: bool = False


Tell = Callable[[Trial, Standing, int], None]  # how a trial ended, and how many are left


def go_on(trial: Trial) -> bool:
    """Give no trial up."""
    return False


class Pool:
    """Runs trials until none is left. slots: a GPU each (as CUDA_VISIBLE_DEVICES has it), or None on a CPU; stops: True for a
    trial that is to be given up.
    """

    def __init__(
        self,
        folder: SweepFolder,
        slots: Sequence[str | None],
        device: str,
        tell: Tell,
        stops: Callable[[Trial], bool] = go_on,
    ) -> None:
        self.folder, self.device, self.tell, self.stops = folder, device, tell, stops
        self._free = deque(slots)
        self._running: list[_Running] = []
        self._tries: dict[str, int] = {}
        self._stopped: int | None = None

    def run(self, trials: Sequence[Trial], retry_failed: bool) -> None:
        """Start, watch, go on; raise Terminated or KeyboardInterrupt when told to stop, after every trial has saved."""
        waiting = deque(trial for trial in trials if to_do(self.folder, trial, retry_failed))
        before = {number: signal.signal(number, self._stop) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            while self._running or (waiting and self._stopped is None):
                for _ in range(len(waiting)):
                    if not self._free or self._stopped is not None:
                        break
                    trial = waiting.popleft()
                    if standing(self.folder.path, trial.name).state == "running":  # what a killed sweep left is still saving
                        waiting.append(trial)
                    elif self.stops(trial):  # its first seed was given up
                        give_up(self.folder, trial)
                        self.tell(trial, Standing("pruned"), len(waiting))
                    else:
                        self._start(trial, retry_failed)
                time.sleep(POLL)
                for one in self._running:
                    if not one.given_up and self.stops(one.trial):
                        one.given_up = True
                        one.process.terminate()
                for one in [one for one in self._running if one.process.poll() is not None]:
                    self._running.remove(one)
                    self._free.append(one.slot)
                    if self._ended(one, len(waiting)):
                        waiting.appendleft(one.trial)
        finally:
            for one in self._running:
                one.process.terminate()
            for number, handler in before.items():
                signal.signal(number, handler)
        if self._stopped == signal.SIGINT:
            raise KeyboardInterrupt
        if self._stopped is not None:
            raise Terminated(f"stopped by a signal; the same command goes on with {self.folder.path}")

    def _stop(self, number: int, frame: object) -> None:
        """The first signal ends the trials as SIGTERM does: they save; a second one is theirs to see at once."""
        self._stopped = number
        for one in self._running:
            one.process.terminate()

    def _start(self, trial: Trial, again: bool) -> None:
        run, log = self.folder.run_of(trial), self.folder.log_of(trial)
        environment = {DIE_WITH: str(os.getpid())}
        if self._free[0] is not None:
            environment["CUDA_VISIBLE_DEVICES"] = self._free[0]
        begun = log.stat().st_size if log.is_file() else 0
        recipe = self.folder.recipe_of(trial.recipe)
        process = start_trial(run, recipe, trial.overrides, log, self.device, again, environment)
        self._tries[trial.name] = self._tries.get(trial.name, 0) + 1
        self._running.append(_Running(process, trial, self._free.popleft(), Stopwatch(), begun))
        self.folder.note(trial, Standing("running"))

    def _ended(self, one: _Running, left: int) -> bool:
        """Note how a trial ended; True where it is to go on: something killed it that was not us."""
        code, trial = one.process.returncode, one.trial
        if one.given_up and code != 0:
            found = give_up(self.folder, trial, round(one.clock.seconds, 1))
            self.tell(trial, found, left)
            return False
        killed = code < 0 or code in (ExitCode.TERMINATED, ExitCode.INTERRUPTED)
        if killed and self._stopped is not None:
            self.folder.note(trial, Standing("interrupted", code=code))
            return False
        if killed and self._tries[trial.name] < TRIES:
            self.tell(trial, Standing("interrupted", f"killed by signal {-code}" if code < 0 else "terminated", code), left)
            return True
        if code == 0:
            found = Standing("completed", seconds=round(one.clock.seconds, 1))
            shutil.rmtree(self.folder.run_of(trial) / "last", ignore_errors=True)  # only of use to resume, and the most of it
        else:
            line = last_error(self.folder.log_of(trial), one.log_start, code)
            found = Standing("failed", line, code, seconds=round(one.clock.seconds, 1))
        self.folder.note(trial, found)
        self.tell(trial, found, left)
        return False


def start_trial(
    run: Path,
    recipe: Path,
    overrides: Sequence[str],
    log: Path,
    device: str,
    again: bool = False,
    environment: Mapping[str, str] = MappingProxyType({}),
) -> subprocess.Popen:
    """`rift finetune` in a process of its own: resumed where there is a checkpoint, else from the start.

    again: a run that ended with an error of its own starts anew. What it prints is appended to `log`.
    """
    arguments = ["--recipe", str(recipe), *(word for override in overrides for word in ("--set", override))]
    if _resumable(run) and not (again and _failed_itself(run)):
        arguments += ["--resume", str(run)]
    else:
        arguments += ["--out", str(run), *["--overwrite"] * (run / "run.json").is_file()]
    log.parent.mkdir(parents=True, exist_ok=True)
    with open_append(log) as out:
        return subprocess.Popen(
            [sys.executable, "-m", "riftcli", "finetune", *arguments, "--device", device],
            stdout=out,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
            start_new_session=True,  # Ctrl-C reaches us alone, and we pass on what lets a trial save
        )


def run_here(folder: SweepFolder, trials: Sequence[Trial], device: str, retry_failed: bool, tell: Tell) -> None:
    """One trial after another in this process: no start-up time, and no protection from a trial that takes it down."""
    from riftcli import recipe as recipes
    from riftcli.api.control import Processes, resume_run, run_one
    from riftcli.console import Console

    left = [trial for trial in trials if to_do(folder, trial, retry_failed)]
    for i, trial in enumerate(left):
        run, recipe, clock = folder.run_of(trial), str(folder.recipe_of(trial.recipe)), Stopwatch()
        processes, console = Processes(device), Console(quiet=True)
        try:
            if _resumable(run) and not _failed_itself(run):
                resume_run(run, (recipe, trial.overrides), processes, console)
            else:
                checked = recipes.load(recipe, trial.overrides)
                run_one(checked, trial.overrides, run, (run / "run.json").is_file(), processes, console)
            found = Standing("completed", seconds=round(clock.seconds, 1))
            shutil.rmtree(run / "last", ignore_errors=True)
        except Terminated:
            folder.note(trial, Standing("interrupted"))
            raise
        except RiftError as error:
            found = Standing("failed", str(error), int(error.exit_code), seconds=round(clock.seconds, 1))
        folder.note(trial, found)
        tell(trial, found, len(left) - 1 - i)


def give_up(folder: SweepFolder, trial: Trial, seconds: float | None = None) -> Standing:
    """Note that a trial is not worth going on with, and drop what is only of use to resume."""
    found = Standing("pruned", seconds=seconds)
    folder.note(trial, found)
    shutil.rmtree(folder.run_of(trial) / "last", ignore_errors=True)
    return found


def to_do(folder: SweepFolder, trial: Trial, retry_failed: bool) -> bool:
    """True for what is neither completed nor given up nor, unless it is to be tried again, failed."""
    state = standing(folder.path, trial.name).state
    return state not in ("completed", "pruned") and (retry_failed or state != "failed")


def _resumable(run: Path) -> bool:
    """True where there is a whole checkpoint; one that was being written is none."""
    return any(run.glob("last/step-????????/manifest.json"))


def _failed_itself(run: Path) -> bool:
    """True where a run ended with an error of its own, so that going on would end in the same way."""
    return (run / "run.json").is_file() and read_json(run / "run.json").get("status") == "failed"


def last_error(log: Path, start: int, code: int) -> str:
    """The one line that a failed attempt printed; start: bytes of the log that are of earlier ones."""
    text = log.read_bytes()[start:].decode("utf-8", errors="replace")
    lines = [line for line in text.splitlines() if line.startswith("error: ")]
    how = f"killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
    return lines[-1].removeprefix("error: ") if lines else f"{how} (log: {log})"


def gpus(device: str) -> list[str | None]:
    """What a pool may use: every GPU that torch sees, unless a CPU was asked for or there is none."""
    if device == "cpu":
        return [None]
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device.startswith("cuda:") or not count:
        return [None]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if os.environ.get("CUDA_VISIBLE_DEVICES") else []
    return [visible[i] if i < len(visible) else str(i) for i in range(count)]


def failure(failed: dict[str, Standing], count: int) -> RiftError:
    """What a sweep with failed trials ends with: each with its one line, and the exit code of the first."""
    lines = [f"  {name}: {found.error}" for name, found in failed.items()]
    error = RiftError(f"{len(failed)} of {count} trials failed; --retry-failed tries them again\n" + "\n".join(lines))
    codes = {int(code): code for code in ExitCode}
    error.exit_code = codes.get(next(iter(failed.values())).code or 1, ExitCode.UNEXPECTED)
    return error
