"""The run folder: who made it, on what, and what came of it. Created once, held by one process, updated atomically."""

from __future__ import annotations

import contextlib
import fcntl
import json
import shutil
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from riftcli.errors import RiftError, StorageError, Terminated, UsageError
from riftcli.runs.provenance import now

RUNS = Path("runs")


def default_folder(name: str, seed: int) -> Path:
    """runs/<recipe>-s<seed>-<UTC time>, not yet existing."""
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    base = RUNS / f"{name}-s{seed}-{stamp}"
    candidate, extra = base, 1
    while candidate.exists():
        extra += 1
        candidate = base.with_name(f"{base.name}-{extra}")
    return candidate


def write_json(path: Path, value: Any) -> None:
    """Replace a JSON file in one step; NaN is refused (a report says null and why)."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
    temporary.replace(path)


class RunFolder:
    """A run folder open for writing; the lock goes with the process, however it ends."""

    def __init__(self, path: Path, fresh: bool = False, started: bool = False, overwrite: bool = False) -> None:
        self.path, self.fresh, self.started, self.overwrite = path, fresh, started, overwrite
        self.watchers: list[Callable[[dict[str, Any]], None]] = []  # told every line of metrics.jsonl
        self._lock = (path / ".lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"{path}: another process is writing to this run; wait for it or choose another --out") from None

    @classmethod
    def create(cls, path: Path, overwrite: bool = False) -> RunFolder:
        """Make and lock the folder; a non-empty one is an error that names the ways out. Nothing is deleted yet."""
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
        """Clear what is to be overwritten, then write provenance and recipes: before the first step."""
        check_free(self.path, self.overwrite)  # again: setting up took a while
        for entry in sorted(self.path.iterdir(), key=lambda entry: entry.name == "run.json"):  # what makes it a run goes last
            if entry.name != ".lock":
                shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
        (self.path / "recipe.yaml").write_text(recipe_text, encoding="utf-8")
        (self.path / "recipe.resolved.yaml").write_text(resolved_text, encoding="utf-8")
        (self.path / "logs").mkdir(exist_ok=True)
        write_json(self.path / "run.json", {"schema": "rift.run/1", "status": "running", **provenance})
        self.started = True

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
                with (self.path / "train.log").open("a", encoding="utf-8") as log:
                    log.write("".join(traceback.format_exception(error)))

    def update(self, **changes: Any) -> None:
        """Change fields of run.json."""
        current = read_run(self.path)
        write_json(self.path / "run.json", {**current, **changes})

    def append(self, row: dict[str, Any]) -> None:
        """One line of metrics.jsonl."""
        with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, allow_nan=False) + "\n")
        for watcher in self.watchers:
            watcher(row)

    def truncate_metrics(self, step: int) -> None:
        """Drop rows past `step`: a resumed run writes them again."""
        path = self.path / "metrics.jsonl"
        if not path.is_file():
            return
        kept = []
        for text in path.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(text)
            except ValueError:
                continue  # the line that was being written when the process died
            if row["step"] <= step:
                kept.append(text)
        path.write_text("".join(line + "\n" for line in kept), encoding="utf-8")

    def close(self) -> None:
        """Release the lock."""
        self._lock.close()


def in_progress(path: Path) -> bool:
    """True while a process holds the run: its weights are those of the best evaluation so far."""
    try:
        with (path / ".lock").open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False  # no lock, or a file system without any
    return False


def check_free(path: Path, overwrite: bool) -> None:
    """Raise UsageError for an output folder that holds anything, unless it is a run and --overwrite was given."""
    if path.exists() and not path.is_dir():
        raise UsageError(f"--out {path}: exists and is not a folder")
    if not path.is_dir() or all(entry.name == ".lock" for entry in path.iterdir()):
        return
    if not overwrite:
        raise UsageError(
            f"--out {path}: folder is not empty; go on with --resume {path}, replace it with --overwrite, or choose another --out"
        )
    if not (path / "run.json").is_file():
        raise UsageError(f"--out {path}: --overwrite only replaces a run folder, and this one has no run.json")


def read_run(path: Path) -> dict[str, Any]:
    """run.json of a folder; raise UsageError when it is not a run."""
    try:
        return json.loads((path / "run.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"{path}: not a run folder (no run.json)") from None
    except ValueError as error:
        raise StorageError(f"{path / 'run.json'}: not valid JSON ({error})") from error


def training_runs(folder: Path) -> list[Path]:
    """The runs below a folder that have a recipe: a map between two models leaves a run folder without one."""
    return [file.parent for file in folder.glob("**/run.json") if (file.parent / "recipe.resolved.yaml").is_file()]


def newest_finished() -> Path:
    """The run under runs/ that completed last; raise UsageError when there is none."""
    done = []
    for place in training_runs(RUNS):
        try:
            run = json.loads((place / "run.json").read_text(encoding="utf-8"))
        except ValueError:
            continue
        if run.get("status") == "completed":
            done.append((run.get("finished", ""), place))
    if not done:
        raise UsageError(f"no finished run under {RUNS}/; pass --run DIR, or start one with `rift finetune --recipe NAME`")
    return max(done)[1]
