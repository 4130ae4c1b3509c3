"""The run folder: who made it, on what, and what came of it. Created once, held by one process, updated atomically."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import platform
import shutil
import time
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from riftcli import files
from riftcli.errors import RiftError, StorageError, Terminated, UsageError
from riftcli.escaping import file_name, one_line, shown
from riftcli.files import write_json
from riftcli.runs.provenance import now

RUNS = Path("runs")
REPLACED = "replaced"  # the run that --overwrite replaces, until the new one has its first checkpoint
STARTING = "starting"  # status from the first file on until everything is there that a resume needs
PATIENCE = 1.0  # seconds for which somebody who only mends a status may hold the lock


def default_folder(name: str, seed: int) -> Path:
    """runs/<recipe>-s<seed>-<UTC time>, not yet existing."""
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    base = RUNS / f"{file_name(name, 200)}-s{seed}-{stamp}"
    candidate, extra = base, 1
    while candidate.exists():
        extra += 1
        candidate = base.with_name(f"{base.name}-{extra}")
    return candidate


class RunFolder:
    """A run folder open for writing; the lock goes with the process, however it ends."""

    def __init__(self, path: Path, fresh: bool = False, started: bool = False, overwrite: bool = False) -> None:
        self.path, self.fresh, self.started, self.overwrite = path, fresh, started, overwrite
        self.watchers: list[Callable[[dict[str, Any]], None]] = []  # told every line of metrics.jsonl
        files.check_no_links(path)
        self._lock = files.open_lock(path / ".lock")
        if not _take(self._lock):
            raise UsageError(f"{path}: another process is writing to this run; wait for it or choose another --out")
        files.clear_partial(path)

    @classmethod
    def create(cls, path: Path, overwrite: bool = False) -> RunFolder:
        """Make and lock the folder; a non-empty one is an error that names the way out. Nothing is deleted yet."""
        check_free(path, overwrite)
        fresh = not path.exists()
        try:
            path.mkdir(parents=True, exist_ok=True)
            return cls(path, fresh, overwrite=overwrite)
        except OSError as error:
            raise StorageError(f"{path}: cannot create the run folder ({error.strerror})") from error

    @classmethod
    def reopen(cls, path: Path) -> RunFolder:
        """Open the folder of a run that is to be resumed."""
        if not (path / "run.json").is_file():
            raise UsageError(f"--resume {path}: not a run folder (no run.json)")
        return cls(path, started=True)

    def start(self, recipe_text: str, resolved_text: str, provenance: dict[str, Any]) -> None:
        """Set aside what is to be replaced, then write provenance and recipes: before the first step.

        Whenever it is killed, the folder says how to go on: run.json comes first, and says that the run is starting until all is
        there that a resume needs. A run that is replaced stays in `replaced/` until this one has its first checkpoint.
        """
        check_free(self.path, self.overwrite)  # again: setting up took a while
        self._set_aside()
        write_json(self.path / "run.json", {"schema": "rift.run/1", "status": STARTING, **provenance})
        files.write_text(self.path / "recipe.yaml", recipe_text)
        files.write_text(self.path / "recipe.resolved.yaml", resolved_text)
        (self.path / "logs").mkdir(exist_ok=True)
        write_json(self.path / "run.json", {"schema": "rift.run/1", "status": "running", **provenance})
        self.started = True

    def _set_aside(self) -> None:
        """Move the run that is here to `replaced/`; what was never trained goes, and does not push out a run that is there."""
        kept = self.path / REPLACED
        entries = [entry for entry in self.path.iterdir() if entry.name not in (".lock", REPLACED)]
        trained = _status(self.path) == "completed" or any((self.path / "last").glob("step-*"))
        if trained and (kept / "run.json").is_file():
            shutil.rmtree(kept)
        if trained:
            kept.mkdir(exist_ok=True)
        for entry in sorted(entries, key=lambda entry: entry.name == "run.json"):  # what makes it a run goes last
            if trained:
                entry.rename(kept / entry.name)
            elif entry.is_dir():
                shutil.rmtree(entry)
            else:
                entry.unlink()

    def checkpointed(self) -> None:
        """There is a checkpoint: what this run replaces is no longer needed."""
        shutil.rmtree(self.path / REPLACED, ignore_errors=True)

    def restart(self) -> None:
        """Nothing was trained before the run was interrupted: it begins anew in its folder, with its log kept."""
        for name in ("model", "adapter", "image_tower", "eval", "last"):
            if (self.path / name).is_dir():
                shutil.rmtree(self.path / name)
        self.truncate_metrics(-1)

    def end_badly(self, error: BaseException) -> None:
        """Note how the run ended, or leave no trace of one that never started. Never hides `error` behind another."""
        with contextlib.suppress(OSError, RiftError):
            if not self.started:
                if self.fresh:
                    (self.path / ".lock").unlink()
                    self.path.rmdir()
                return
            stopped = isinstance(error, KeyboardInterrupt | Terminated)
            text = str(error) or type(error).__name__
            self.update(status="interrupted" if stopped else "failed", finished=now(), error=text)
            if not isinstance(error, RiftError | KeyboardInterrupt):
                with files.open_append(self.path / "train.log") as log:
                    log.write(shown("".join(traceback.format_exception(error))))

    def update(self, **changes: Any) -> None:
        """Change fields of run.json."""
        current = _read(self.path)
        write_json(self.path / "run.json", {**current, **changes})

    def append(self, row: dict[str, Any]) -> None:
        """One line of metrics.jsonl."""
        with files.open_append(self.path / "metrics.jsonl") as file:
            file.write(json.dumps(row, allow_nan=False) + "\n")
        for watcher in self.watchers:
            watcher(row)

    def truncate_metrics(self, step: int) -> None:
        """Drop rows past `step`: a resumed run writes them again."""
        path = self.path / "metrics.jsonl"
        if not path.is_file():
            return
        kept = []
        for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                row = files.parse_json(text)
            except ValueError:
                continue  # the line that was being written when the process died
            if row.get("step", 0) <= step:
                kept.append(text)
        files.write_text(path, "".join(line + "\n" for line in kept))

    def close(self) -> None:
        """Release the lock."""
        self._lock.close()


def _take(lock: Any) -> bool:
    """Whether the lock could be had; somebody who mends a status holds it for a moment."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
        else:
            return True


def in_progress(path: Path) -> bool:
    """True while a process holds the run: its weights are those of the best evaluation so far."""
    try:
        descriptor = os.open(path / ".lock", os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    except OSError:
        return False  # no lock
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False  # a file system without locks
    finally:
        os.close(descriptor)
    return False


def _alive(path: Path, record: dict[str, Any]) -> bool:
    """True for a run whose process holds its lock, or may be alive elsewhere, or on a file system without locks."""
    if in_progress(path):
        return True
    if record.get("host", platform.node()) != platform.node():
        return True  # whether it is, that machine knows
    pid = record.get("pid")
    if not isinstance(pid, int) or pid == os.getpid() or (path / ".lock").is_file():
        return False
    try:
        os.kill(pid, 0)
    except (OSError, OverflowError):
        return False
    return True


def check_free(path: Path, overwrite: bool) -> None:
    """Raise UsageError for an output folder that holds anything, unless it is a run and --overwrite was given, or one that was
    killed while it was starting.
    """
    try:
        str(path).encode()
        there = path.exists()
    except (OSError, UnicodeEncodeError) as error:  # safetensors writes to UTF-8 names alone
        why = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise UsageError(f"--out {one_line(path)[:120]}: not a name for a run folder ({why}); choose another --out") from None
    if there and not path.is_dir():
        raise UsageError(f"--out {path}: exists and is not a folder")
    if not path.is_dir() or all(entry.name == ".lock" or files.is_partial(entry) for entry in path.iterdir()):
        return  # nothing is there yet: who is writing run.json holds the lock, and what a killed process left goes
    if not (path / "run.json").is_file():
        if overwrite:
            raise UsageError(f"--out {path}: --overwrite only replaces a run folder, and this one has no run.json")
        raise UsageError(f"--out {path}: folder is not empty and holds no run; choose another --out")
    if not overwrite and _status(path) != STARTING:
        raise UsageError(
            f"--out {path}: folder is not empty; go on with --resume {path}, replace it with --overwrite, or choose another --out"
        )


def _read(path: Path) -> dict[str, Any]:
    try:
        return files.read_json(path / "run.json")
    except FileNotFoundError:
        raise UsageError(f"{path}: not a run folder (no run.json)") from None
    except (OSError, ValueError) as error:
        raise StorageError(f"{path / 'run.json'}: not valid JSON ({error})") from error


def _status(path: Path) -> str | None:
    with contextlib.suppress(RiftError):
        return read_run(path).get("status")
    return None


def read_run(path: Path) -> dict[str, Any]:
    """run.json of a folder, mended if its process ended without a word; raise UsageError when it is not a run."""
    record = _read(path)
    if record.get("status") == "running" and not _alive(path, record):
        return settle(path, "interrupted", "ended without a word: killed, or the machine went down")
    return record


def settle(path: Path, status: str, error: str) -> dict[str, Any]:
    """Note how a run ended whose process could not; returns its run.json as it then is. A run in progress is left alone."""
    record = _read(path)
    if record.get("status") != "running":
        return record
    settled = {**record, "status": status, "finished": now(), "error": error}
    with contextlib.suppress(OSError, RiftError), files.open_lock(path / ".lock") as lock:  # read-only folders stay as they are
        if not _take(lock):
            return record
        again = _read(path)
        if again != record:
            return again
        write_json(path / "run.json", settled)
    return settled


def begun_by(launcher: str | None, place: Path | None) -> Path | None:
    """The run that the workers of a launcher had begun before it started them anew: in `place`, else the newest below runs/."""
    if launcher is None:
        return None
    found = [place] if place is not None else [file.parent for file in RUNS.glob("*/run.json")]
    own = []
    for path in found:
        with contextlib.suppress(RiftError):
            record = _read(path)
            if record.get("launcher") == launcher and record.get("status") not in ("completed", STARTING):
                own.append((record.get("created", ""), path))
    return max(own)[1] if own else None


def training_runs(folder: Path) -> list[Path]:
    """The runs below a folder that have a recipe: a map between two models leaves a run folder without one."""
    return [file.parent for file in folder.glob("**/run.json") if (file.parent / "recipe.resolved.yaml").is_file()]


def newest_finished() -> Path:
    """The run under runs/ that completed last; raise UsageError when there is none."""
    done = []
    for place in training_runs(RUNS):
        try:
            run = files.read_json(place / "run.json")
        except (OSError, ValueError):
            continue
        if run.get("status") == "completed":
            done.append((run.get("finished", ""), place))
    if not done:
        raise UsageError(f"no finished run under {RUNS}/; pass --run DIR, or start one with `rift finetune --recipe NAME`")
    return max(done)[1]
