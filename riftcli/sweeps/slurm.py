"""SLURM, through submitit: it queues the trials, and one that is pre-empted resumes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from riftcli.errors import EnvironmentError, UsageError
from riftcli.sweeps.jobs import TrialJob

COMMON = ("timeout_min", "gpus_per_node", "cpus_per_task", "mem_gb", "nodes", "tasks_per_node", "name", "stderr_to_stdout")


class Slurm:
    """A Scheduler. Jobs outlive the process that submitted them.

    options: submitit's (timeout_min, gpus_per_node, cpus_per_task, mem_gb, ...) and sbatch's (partition, account, qos, ...);
    cluster: slurm, or submitit's local executor. Raises EnvironmentError without submitit or without a cluster.
    """

    def __init__(self, sweep: Path, options: dict[str, Any], cluster: str = "slurm") -> None:
        try:
            import submitit
        except ImportError as error:
            raise EnvironmentError("--on slurm needs submitit: pip install 'riftcli[slurm]'") from error
        self.place, self.cluster = (sweep / "jobs").resolve(), cluster
        try:
            self.executor = submitit.AutoExecutor(folder=self.place, cluster=cluster)
            named = {key if key in COMMON else f"{cluster}_{key}": value for key, value in options.items()}
            self.executor.update_parameters(**named)
        except RuntimeError as error:
            raise EnvironmentError(f"--on {cluster}: {error}") from error
        except (TypeError, ValueError, NameError) as error:
            raise UsageError(f"sweep: {cluster}: {str(error).strip().splitlines()[0]}") from error

    def submit(self, job: TrialJob) -> tuple[Any, str | None]:
        """Queue it."""
        submitted = self.executor.submit(job)
        return submitted, submitted.job_id if self.cluster == "slurm" else None

    def found(self, name: str) -> Any:
        """By its number."""
        import submitit

        return submitit.SlurmJob(folder=self.place, job_id=name)

    def done(self, job: Any) -> bool:
        """Ended in any way."""
        return job.done()

    def result(self, job: Any) -> int:
        """The exit code."""
        return job.result()

    def cancel(self, job: Any) -> None:
        """SIGTERM, and the queue forgets it."""
        job.cancel()
