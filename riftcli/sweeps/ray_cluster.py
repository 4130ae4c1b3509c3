"""Ray: a cluster that runs it, or one that is started on this machine."""

from __future__ import annotations

import logging
import os
from typing import Any

from riftcli.errors import EnvironmentError, UsageError
from riftcli.launch import DIE_WITH
from riftcli.sweeps.jobs import TrialJob

OPTIONS = ("address", "num_cpus", "num_gpus", "memory", "max_retries")


class Ray:
    """A Scheduler. A trial is a task; one whose node is lost starts again elsewhere and resumes. Jobs end with this process.

    options: address of a cluster (default: RAY_ADDRESS, else a Ray of its own on this machine; `auto` is the one that runs here
    already), and per trial num_cpus (default 1), num_gpus (default 1 where the cluster has one), memory in bytes, max_retries
    (default 3). The sweep folder, data and the environment must be the same on every node. Raises EnvironmentError without Ray
    or without the cluster, UsageError for what it does not have.
    """

    def __init__(self, options: dict[str, Any], device: str) -> None:
        try:
            import ray
        except ImportError as error:
            raise EnvironmentError("--on ray needs Ray: pip install 'riftcli[ray]'") from error
        wrong = [key for key in options if key not in OPTIONS]
        if wrong:
            raise UsageError(f"sweep: ray: unknown option '{wrong[0]}'; allowed here: {', '.join(OPTIONS)}")
        per_trial = {key: value for key, value in options.items() if key != "address"}
        address = options.get("address") or os.environ.get("RAY_ADDRESS") or "local"
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported to anybody
        try:
            quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
            ray.init(address=address, include_dashboard=False if address == "local" else None, **quiet)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise EnvironmentError(f"--on ray: {next(iter(str(error).strip().splitlines()), 'no cluster')}") from error
        there = ray.cluster_resources()
        gpu = 1 if device != "cpu" and there.get("GPU", 0) >= 1 else 0
        resources = {"num_cpus": 1, "num_gpus": gpu, "max_retries": 3, **per_trial}
        for key, name in (("num_cpus", "CPU"), ("num_gpus", "GPU")) if address == "local" else ():  # others may grow
            if resources[key] > there.get(name, 0):
                ray.shutdown()
                raise UsageError(f"sweep: ray: {key} {resources[key]}: this machine has {there.get(name, 0):g}")
        try:
            self.run = ray.remote(_run).options(**resources)
        except (TypeError, ValueError) as error:
            raise UsageError(f"sweep: ray: {str(error).strip().splitlines()[0]}") from error
        self.ray = ray

    def submit(self, job: TrialJob) -> tuple[Any, str | None]:
        """A task."""
        return self.run.remote(job), None

    def found(self, name: str) -> Any:
        """Never: tasks end with the process that started them, and their trials save."""
        return None

    def done(self, job: Any) -> bool:
        """Ended in any way."""
        return bool(self.ray.wait([job], timeout=0)[0])

    def result(self, job: Any) -> int:
        """The exit code."""
        return self.ray.get(job)

    def cancel(self, job: Any) -> None:
        """Interrupt the task, which lets its trial save."""
        self.ray.cancel(job, force=False)

    def close(self) -> None:
        """Leave the cluster; one that was started here ends."""
        self.ray.shutdown()


def _run(job: TrialJob) -> int:
    """In a worker of Ray: when that is lost, so is the trial's parent, and the trial saves."""
    job.environment[DIE_WITH] = str(os.getpid())
    try:
        return job()
    finally:
        job.stop()
