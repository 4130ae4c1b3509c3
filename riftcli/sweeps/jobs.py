"""The trials of a sweep as jobs of somebody else's scheduler: submitted at once, waited for, given up where that is asked."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from riftcli.errors import ExitCode
from riftcli.runs.folder import in_progress
from riftcli.sweeps.folder import Standing, SweepFolder, standing
from riftcli.sweeps.pool import TRIES, Tell, give_up, last_error, start_trial, to_do
from riftcli.sweeps.trial import Trial

CANCEL_AGAIN = 30.0  # a scheduler can lose the word that a job is to end: Ray does where its worker is just then starting it
GRACE = 90.0  # seconds that a trial has to save in; SLURM's own default between signal and kill is 30, submitit asks for 90


class TrialJob:
    """What a node runs: one trial in a process of its own. Whether it starts or resumes is decided there and then."""

    def __init__(
        self,
        run: Path,
        recipe: Path,
        overrides: list[str],
        log: Path,
        device: str,
        again: bool = False,
    ) -> None:
        self.run, self.recipe, self.overrides, self.log, self.device, self.again = run, recipe, overrides, log, device, again
        self.environment: dict[str, str] = {}
        self._process: subprocess.Popen | None = None

    def __call__(self) -> int:
        """Run to the end; returns the exit code."""
        deadline = time.monotonic() + GRACE
        while in_progress(self.run) and time.monotonic() < deadline:  # what a lost node or a killed sweep left is still saving
            time.sleep(0.2)
        where = (self.run, self.recipe, self.overrides, self.log, self.device)
        self._process = start_trial(*where, self.again, self.environment)
        while self._process.poll() is None:  # wait() would hold a lock that `checkpoint`, a signal handler, needs
            time.sleep(0.2)
        return self._process.returncode

    def stop(self) -> None:
        """Let the trial save and end."""
        if self._process is not None:
            self._process.terminate()
            deadline = time.monotonic() + GRACE
            while self._process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.2)

    def checkpoint(self) -> Any:
        """Called by submitit before pre-emption or a time limit: the trial saves, and the job is queued once more."""
        from submitit.helpers import DelayedSubmission

        self.stop()
        return DelayedSubmission(TrialJob(self.run, self.recipe, self.overrides, self.log, self.device))


class Scheduler(Protocol):
    """Where jobs run. What it hands out as a job is its own."""

    def submit(self, job: TrialJob) -> tuple[Any, str | None]:
        """(the job, its name where that outlives this process)."""

    def found(self, name: str) -> Any:
        """A job that was submitted before; None where jobs end with the process that submitted them."""

    def done(self, job: Any) -> bool:
        """True when it has ended."""

    def result(self, job: Any) -> int:
        """The exit code; raises whatever the scheduler does where the node was lost."""

    def cancel(self, job: Any) -> None:
        """End it, with time to save."""


def run_jobs(
    scheduler: Scheduler,
    folder: SweepFolder,
    trials: Sequence[Trial],
    device: str,
    retry_failed: bool,
    tell: Tell,
    stops: Callable[[Trial], bool],
    poll: float,
) -> None:
    """Submit what is not done, and wait for it. One that something killed is submitted once more, and resumes. After Ctrl-C the
    same command goes on: SLURM's jobs stay in the queue meanwhile, Ray's save and end.
    """
    waiting: dict[str, tuple[Trial, Any]] = {}
    for trial in trials:
        name = folder.job_of(trial)
        known = scheduler.found(name) if name is not None and standing(folder.path, trial.name).state != "completed" else None
        if known is not None:
            waiting[trial.name] = trial, known
    tries: dict[str, int] = {}

    def submit(trial: Trial) -> None:
        run, log, recipe = folder.run_of(trial), folder.log_of(trial), folder.recipe_of(trial.recipe)
        again = retry_failed and trial.name not in tries
        tries[trial.name] = tries.get(trial.name, 0) + 1
        job, name = scheduler.submit(TrialJob(run.resolve(), recipe.resolve(), trial.overrides, log.resolve(), device, again))
        folder.note(trial, Standing("running", job=name))
        waiting[trial.name] = trial, job

    for trial in [trial for trial in trials if trial.name not in waiting and to_do(folder, trial, retry_failed)]:
        submit(trial)
    given_up: dict[str, float] = {}  # when it was last told to end
    while waiting:
        for name, (trial, job) in list(waiting.items()):
            if scheduler.done(job):
                del waiting[name]
                found = _outcome(scheduler, folder, trial, job)
                if name in given_up and found.state != "completed":
                    found = give_up(folder, trial)
                folder.note(trial, found)
                tell(trial, found, len(waiting))
                if found.state == "interrupted" and tries.get(name, 0) < TRIES:
                    submit(trial)
            elif time.monotonic() - given_up[name] > CANCEL_AGAIN if name in given_up else stops(trial):
                given_up[name] = time.monotonic()
                scheduler.cancel(job)
        if waiting:
            time.sleep(poll)


def _outcome(scheduler: Scheduler, folder: SweepFolder, trial: Trial, job: Any) -> Standing:
    """How a finished job ended, by its exit code; where the node was lost there is none, and the run folder tells."""
    try:
        code = scheduler.result(job)
    except Exception as error:  # the scheduler's own classes, and whatever a node can do
        if standing(folder.path, trial.name).state == "completed":
            return Standing("completed")
        return Standing("interrupted", f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')}")
    if code == 0:
        shutil.rmtree(folder.run_of(trial) / "last", ignore_errors=True)
        return Standing("completed")
    if code < 0 or code in (ExitCode.TERMINATED, ExitCode.INTERRUPTED):
        return Standing("interrupted", f"killed by signal {-code}" if code < 0 else "terminated", code)
    return Standing("failed", last_error(folder.log_of(trial), 0, code), code)
