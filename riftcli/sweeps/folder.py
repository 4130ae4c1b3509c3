"""The folder of a sweep: what was planned, how each trial stands. Trials are ordinary run folders below it.

sweep.json    the plan; written once, added to when the file grows
recipes/      the recipes as they were
trials/<settings>/s<seed>/   the runs: what --repeats would leave, so every command reads them
logs/         what each trial printed
status.json   how each trial ended, with its one line where it failed
"""

from __future__ import annotations

import fcntl
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from riftcli import recipe as recipes
from riftcli.errors import UsageError
from riftcli.runs.folder import write_json
from riftcli.runs.provenance import now
from riftcli.runs.reader import read_json, read_rows
from riftcli.sweeps.plan import Plan, Trial

State = Literal["completed", "failed", "interrupted", "running", "waiting"]


@dataclass(frozen=True)
class Standing:
    """How a trial stands. error: its one line, where it failed."""

    state: State
    error: str | None = None
    code: int | None = None
    seconds: float | None = None


class SweepFolder:
    """A sweep folder open for running: one process at a time."""

    def __init__(self, path: Path) -> None:
        path.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._lock = (path / ".lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(
                f"{path}: another process runs this sweep; wait for it (`rift sweep show {path}`) or choose another --out"
            ) from None

    def begin(self, plan: Plan) -> None:
        """Write the plan and the recipes as they are; raise UsageError where what was run differs from what is planned now."""
        known = self.path / "sweep.json"
        if not known.is_file() and any(entry.name != ".lock" for entry in self.path.iterdir()):
            raise UsageError(f"--out {self.path}: folder is not empty and holds no sweep; choose another --out")
        before = {trial["name"]: trial for trial in read_json(known)["trials"]} if known.is_file() else {}
        for trial in plan.trials:
            old = before.get(trial.name)
            if old is not None and old["overrides"] != trial.overrides:
                changed = sorted(set(old["overrides"]) ^ set(trial.overrides))
                raise UsageError(
                    f"{self.path}: trial {trial.name} was planned with other settings ({', '.join(changed)}); "
                    "put the sweep file back, or choose another --out"
                )
        (self.path / "recipes").mkdir(exist_ok=True)
        for name in dict.fromkeys(trial.recipe for trial in plan.trials):
            text, _ = recipes.source(name)
            copy = self.recipe_of(name)
            if copy.is_file() and copy.read_text(encoding="utf-8") != text:
                raise UsageError(f"{self.path}: recipe {name} has changed since the sweep began; choose another --out")
            copy.write_text(text, encoding="utf-8")
        described = plan.described()
        planned = {trial["name"] for trial in described["trials"]}
        described["trials"] += [trial for name, trial in before.items() if name not in planned]
        created = read_json(known)["created"] if known.is_file() else now()
        write_json(known, {"schema": "rift.sweep/1", "created": created, **described, "text": plan.text})

    def recipe_of(self, name: str) -> Path:
        """The copy of a recipe."""
        return self.path / "recipes" / f"{Path(name).name.removesuffix('.yaml')}.yaml"

    def run_of(self, trial: Trial) -> Path:
        """The run folder of a trial."""
        return self.path / "trials" / trial.name

    def log_of(self, trial: Trial) -> Path:
        """What a trial printed."""
        return self.path / "logs" / f"{trial.name.replace('/', '-')}.log"

    def note(self, trial: Trial, standing: Standing) -> None:
        """Remember how a trial stands."""
        file = self.path / "status.json"
        all_ = read_json(file) if file.is_file() else {}
        write_json(file, {**all_, trial.name: {k: v for k, v in vars(standing).items() if v is not None}})

    def close(self) -> None:
        """Let others run it."""
        self._lock.close()


def read_sweep(path: Path) -> dict[str, Any]:
    """sweep.json of a folder; raise UsageError when it is none."""
    return read_json(path / "sweep.json", f"{path}: not a sweep folder (no sweep.json)")


def standing(sweep: Path, name: str) -> Standing:
    """How a trial stands, by its own run folder first: that is written by the run itself."""
    run = sweep / "trials" / name
    file = sweep / "status.json"
    noted = read_json(file).get(name, {}) if file.is_file() else {}
    try:
        record = json.loads((run / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        record = {}
    state = record.get("status")
    seconds = noted.get("seconds")
    if state == "completed":
        return Standing("completed", seconds=seconds)
    if state == "running" and _held(run):
        return Standing("running")
    if noted.get("state") == "failed" or state == "failed":
        return Standing("failed", noted.get("error") or record.get("error"), noted.get("code"), seconds)
    return Standing("interrupted" if record else "waiting")


def _held(run: Path) -> bool:
    """True while a process writes to a run."""
    try:
        with (run / ".lock").open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def progress(sweep: Path, name: str) -> str:
    """Where a running trial is: its last evaluation."""
    rows = [row for row in read_rows(sweep / "trials" / name) if row["kind"] in ("eval", "step")]
    return f"epoch {rows[-1]['epoch']}, step {rows[-1]['step']}" if rows else "starting"
