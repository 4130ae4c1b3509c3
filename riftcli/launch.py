"""Start N workers through torch's own elastic launcher, and show the one root cause when one of them dies."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

from riftcli.errors import EnvironmentError, ExitCode, Interrupted, RiftError, Terminated, UsageError
from riftcli.escaping import shown

SIGNALS = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"  # passed on to the workers; SIGUSR1 is what Slurm sends before the end


DIE_WITH = "RIFT_DIE_WITH"  # set by whoever starts us: the process that we must not outlive


def die_with_parent() -> None:
    """Where a launcher or a sweep started this process: SIGTERM when that dies, however it happens, so that the run saves and
    ends.
    """
    parent = os.environ.pop(DIE_WITH, None)
    by_torchrun = "TORCHELASTIC_RUN_ID" in os.environ and "RANK" in os.environ
    if (parent is None and not by_torchrun) or not sys.platform.startswith("linux"):
        return
    import ctypes

    pr_set_pdeathsig = 1
    ctypes.CDLL(None, use_errno=True).prctl(pr_set_pdeathsig, int(signal.SIGTERM))
    if parent is not None and os.getppid() != int(parent):  # it died before we asked
        sys.exit(int(ExitCode.TERMINATED))


def is_worker(pid: int, rank: int) -> bool:
    """True for a process of this machine that is rank `rank` of the job that this process belongs to."""
    try:
        words = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False
    own = [f"{key}={os.environ.get(key)}".encode() for key in ("TORCHELASTIC_RUN_ID", "MASTER_ADDR", "MASTER_PORT")]
    return pid > 1 and all(word in words for word in [*own, f"RANK={rank}".encode()])


def processes(spec: str) -> int:
    """--nproc-per-node: a number, or `gpu` for every GPU of this machine."""
    if spec == "gpu":
        import torch

        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if count == 0:
            raise EnvironmentError("--nproc-per-node gpu: torch sees no GPU here; give a number, or run `rift doctor`")
        return count
    if not (spec.isascii() and spec.isdecimal()) or int(spec) < 1:
        raise UsageError(f"--nproc-per-node {spec}: expected a number of processes, or gpu")
    return int(spec)


def launch(arguments: list[str], nproc: int, log_folder: Path, nnodes: str = "1", rendezvous: str | None = None) -> None:
    """Run `python -m riftcli ARGUMENTS` in nproc processes; raise RiftError with the first failure's message and code.

    log_folder: RUN/logs, where ranks other than 0 write rank<r>.log themselves; named in the message for one that was killed.
    Rendezvous on localhost:0 picks a free port; several nodes need a shared `rendezvous` host:port.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    low, _, high = nnodes.partition(":")
    if not (low.isdecimal() and (high or low).isdecimal()):
        raise UsageError(f"--nnodes {nnodes}: expected N or MIN:MAX")
    # Two ranks that each use every core are slower than one.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // nproc)))
    os.environ["RIFT_LAUNCHED"] = "1"  # workers leave the printing of errors to us
    os.environ[DIE_WITH] = str(os.getpid())
    handled = SIGNALS
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # nohup
        handled = SIGNALS.replace("SIGHUP,", "")
    with tempfile.TemporaryDirectory(prefix="rift-launch-") as scratch:
        known = LaunchConfig.__dataclass_fields__  # newer torch takes the signals here, older from the environment
        os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = handled
        signals: dict[str, Any] = {"signals_to_handle": handled} if "signals_to_handle" in known else {}
        config = LaunchConfig(
            min_nodes=int(low),
            max_nodes=int(high or low),
            nproc_per_node=nproc,
            run_id=f"rift-{os.getpid()}" if rendezvous is None else "rift",
            rdzv_backend="c10d",
            rdzv_endpoint=rendezvous or "localhost:0",
            max_restarts=0,
            monitor_interval=0.1,
            logs_specs=DefaultLogsSpecs(log_dir=scratch),
            **signals,
        )
        try:
            elastic_launch(config, sys.executable)("-m", "riftcli", *arguments)
        except ChildFailedError as error:
            raise _root_cause(error, log_folder, Path(scratch)) from None
        except SignalException as error:
            run = log_folder.parent
            begun = (run / "run.json").is_file()
            how = f"stopped by {error.sigval.name}" + (
                f"; go on with --resume {run}" if begun else ", before anything was trained"
            )
            raise (Interrupted if error.sigval == signal.SIGINT else Terminated)(how) from None
        finally:  # they are of these workers: what a notebook starts later is nobody's worker
            for name in (DIE_WITH, "RIFT_LAUNCHED"):
                os.environ.pop(name, None)


def _root_cause(error: Any, log_folder: Path, notes: Path) -> RiftError:
    """What to say of a group that failed. notes: the folder of what its workers wrote (record_worker_error)."""

    # Peers of the rank that failed end too, with a lost connection (1) or the agent's SIGTERM: they are not the cause.
    def order(item: Any) -> tuple[bool, int]:
        return item[1].exitcode in (1, int(ExitCode.TERMINATED), -signal.SIGTERM), item[1].timestamp

    rank, failure = min(error.failures.items(), key=order)
    message, code = failure.message, failure.exitcode
    if isinstance(message, dict):
        message = message.get("message", str(message))
    ended = _ended_by_another(rank, notes) if code < 0 else None
    if ended is not None:
        rank, message, code = ended
    elif code < 0:
        log = log_folder / f"rank{rank}.log" if rank else log_folder.parent / "train.log"
        message = f"killed by signal {-code} (log: {log})"
    result = RiftError(f"rank {rank}: {message}")
    codes = {int(known): known for known in ExitCode}
    result.exit_code = codes.get(code, ExitCode.UNEXPECTED)
    return result


def _ended_by_another(rank: int, notes: Path) -> tuple[int, str, int] | None:
    """(rank, message, exit code) of the worker that ended this one, because it did not get on: that is the cause, also where the
    launcher saw the end of this one first.
    """
    for file in notes.rglob("error.json"):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            note = json.loads(file.read_text(encoding="utf-8"))["message"]
            if note["extraInfo"]["ended"] == rank:
                return note["extraInfo"]["rank"], note["message"], note["extraInfo"]["exit_code"]
    return None


_ended: int | None = None  # the rank that this process has ended
_rank_log: Path | None = None  # this process's own log, once there is a run folder


def log_errors_to(path: Path) -> None:
    """From now on a worker's traceback goes to this file."""
    global _rank_log
    _rank_log = path


def record_worker_error(error: BaseException, message: str, ended: int | None = None) -> None:
    """Inside a worker: the traceback goes to the rank's log, the message to where the elastic launcher looks for it. ended: the
    rank that this one is about to end for it: what then breaks here, in another thread, is no news.
    """
    global _ended
    if _ended is not None:
        return
    _ended = ended
    rank = os.environ.get("RANK", "0")
    # before a run folder exists there is no better place than the temporary one
    log = _rank_log or Path(tempfile.gettempdir()) / f"rift-{os.getpid()}-rank{rank}.log"
    trace = "".join(traceback.format_exception(error))
    with (
        contextlib.suppress(OSError),
        log.open("a", encoding="utf-8", errors="backslashreplace") as file,
    ):  # a full disk must not hide the error
        file.write(shown(f"{message}\n{trace}\n"))
    error_file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if error_file:
        facts: dict[str, Any] = {"py_callstack": trace, "timestamp": str(int(time.time()))}
        facts |= {"rank": int(rank), "exit_code": int(getattr(error, "exit_code", ExitCode.UNEXPECTED)), "ended": ended}
        note = {"message": f"{message} (log: {log})", "extraInfo": facts}
        with contextlib.suppress(OSError):
            Path(error_file).parent.mkdir(parents=True, exist_ok=True)
            Path(error_file).write_text(json.dumps({"message": note}), encoding="utf-8")
