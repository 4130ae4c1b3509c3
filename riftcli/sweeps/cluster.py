"""The trials of a sweep as jobs of a cluster, through submitit: SLURM queues them, and one that is pre-empted resumes."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from riftcli.errors import EnvironmentError, UsageError
from riftcli.sweeps.folder import Standing, SweepFolder, standing
from riftcli.sweeps.plan import Trial
from riftcli.sweeps.pool import last_error, start_trial, to_do

GRACE = 90.0  # seconds that a trial has to save in; SLURM's own default between signal and kill is 30, submitit asks for 90
COMMON = ("timeout_min", "gpus_per_node", "cpus_per_task", "mem_gb", "nodes", "tasks_per_node", "name", "stderr_to_stdout")


class TrialJob:
    """What a node runs: one trial in a process of its own. Whether it starts or resumes is decided there and then."""

    def __init__(self, run: Path, recipe: Path, overrides: list[str], log: Path, device: str) -> None:
        self.run, self.recipe, self.overrides, self.log, self.device = run, recipe, overrides, log, device
        self._process: subprocess.Popen | None = None

    def __call__(self) -> int:
        """Run to the end; returns the exit code."""
        self._process = start_trial(self.run, self.recipe, self.overrides, self.log, self.device)
        while self._process.poll() is None:  # wait() would hold a lock that `checkpoint`, a signal handler, needs
            time.sleep(0.2)
        return self._process.returncode

    def checkpoint(self) -> Any:
        """Called before pre-emption or a time limit: the trial saves, and the job is queued once more."""
        from submitit.helpers import DelayedSubmission

        if self._process is not None:
            self._process.terminate()
            deadline = time.monotonic() + GRACE
            while self._process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.2)
        return DelayedSubmission(TrialJob(self.run, self.recipe, self.overrides, self.log, self.device))


def run_on_cluster(
    folder: SweepFolder,
    trials: Sequence[Trial],
    device: str,
    retry_failed: bool,
    tell: Callable[[Trial, Standing, int], None],
    options: dict[str, Any],
    cluster: str = "slurm",
    poll: float = 5.0,
) -> None:
    """Submit what is not done, and wait. Ctrl-C leaves the jobs in the queue; the same command later waits for them again.

    options: submitit's (timeout_min, gpus_per_node, cpus_per_task, mem_gb, ...) and sbatch's (partition, account, qos, ...).
    Raises EnvironmentError without submitit or without a cluster.
    """
    try:
        import submitit
    except ImportError as error:
        raise EnvironmentError("--on slurm needs submitit: pip install 'riftcli[slurm]'") from error
    place = (folder.path / "jobs").resolve()
    try:
        executor = submitit.AutoExecutor(folder=place, cluster=cluster)
        executor.update_parameters(**{key if key in COMMON else f"{cluster}_{key}": value for key, value in options.items()})
    except RuntimeError as error:
        raise EnvironmentError(f"--on {cluster}: {error}") from error
    except (TypeError, ValueError, NameError) as error:
        raise UsageError(f"sweep: {cluster}: {str(error).strip().splitlines()[0]}") from error
    waiting: dict[str, tuple[Trial, Any]] = {}
    for trial in trials:
        known = folder.job_of(trial) if cluster == "slurm" else None
        if known is not None and standing(folder.path, trial.name).state != "completed":
            waiting[trial.name] = trial, submitit.SlurmJob(folder=place, job_id=known)
    new = [trial for trial in trials if trial.name not in waiting and to_do(folder, trial, retry_failed)]
    for trial in new:
        run, log = folder.run_of(trial).resolve(), folder.log_of(trial).resolve()
        recipe = folder.recipe_of(trial.recipe).resolve()
        job = executor.submit(TrialJob(run, recipe, trial.overrides, log, device))
        folder.note(trial, Standing("running", job=job.job_id))
        waiting[trial.name] = trial, job
    while waiting:
        for name, (trial, job) in list(waiting.items()):
            if job.done():
                del waiting[name]
                found = _outcome(folder, trial, job)
                folder.note(trial, found)
                tell(trial, found, len(waiting))
        if waiting:
            time.sleep(poll)


def _outcome(folder: SweepFolder, trial: Trial, job: Any) -> Standing:
    """How a finished job ended, by its exit code; where the node was lost there is none, and the run folder tells."""
    try:
        code = job.result()
    except Exception as error:  # submitit's own classes, and whatever a node can do
        if standing(folder.path, trial.name).state == "completed":
            return Standing("completed")
        return Standing("interrupted", f"job {job.job_id}: {str(error).strip().splitlines()[0]}")
    if code == 0:
        return Standing("completed")
    return Standing("failed", last_error(folder.log_of(trial), 0, code), code)
