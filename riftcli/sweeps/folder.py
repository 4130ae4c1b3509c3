"""The folder of a sweep: what was planned, how each trial stands. Trials are ordinary run folders below it.

sweep.json    the plan; written once, added to when the file grows
recipes/      the recipes as they were
trials/<settings>/s<seed>/   the runs: what --repeats would leave, so every command reads them
logs/         what each trial printed
search.log    what Optuna chose and was told, where settings are searched
status.json   how each trial ended, with its one line where it failed
"""

from __future__ import annotations

import fcntl
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from riftcli import files
from riftcli import recipe as recipes
from riftcli.errors import UsageError
from riftcli.files import open_lock, write_json, write_text
from riftcli.runs.folder import in_progress
from riftcli.runs.provenance import now
from riftcli.runs.reader import read_json, read_rows
from riftcli.sweeps.plan import Plan
from riftcli.sweeps.trial import Trial

State = Literal["completed", "failed", "interrupted", "pruned", "running", "waiting"]


@dataclass(frozen=True)
class Standing:
    """How a trial stands. error: its one line, where it failed."""

    state: State
    error: str | None = None
    code: int | None = None
    job: str | None = None  # of a cluster
    seconds: float | None = None


class SweepFolder:
    """A sweep folder open for running: one process at a time."""

    def __init__(self, path: Path) -> None:
        path.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._copies: dict[str, Path] = {}
        self._lock = open_lock(path / ".lock")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(
                f"{path}: another process runs this sweep; wait for it (`rift sweep show {path}`) or choose another --out"
            ) from None

    def begin(self, plan: Plan) -> None:
        """Write the plan and the recipes as they are; raise UsageError where what was run differs from what is planned now.

        Everything is checked before anything is written.
        """
        known = self.path / "sweep.json"
        if not known.is_file() and any(entry.name not in (".lock", "recipes") for entry in self.path.iterdir()):
            raise UsageError(f"--out {self.path}: folder is not empty and holds no sweep; choose another --out")
        fresh: dict[str, Any] = {"trials": [], "rows": {}, "columns": {}, "created": now()}
        old = read_json(known) if known.is_file() else fresh
        before = {trial["name"]: trial for trial in old["trials"]}
        self._check_same(before, plan, [*old["rows"], *old["columns"]])
        texts = {name: plan.texts.source(name)[0] for name in dict.fromkeys(trial.recipe for trial in plan.trials)}
        described = plan.described()
        for trial in described["trials"]:
            known_copy = before.get(trial["name"], {}).get("copy")
            trial["copy"] = known_copy or copy_name(trial["recipe"], texts[trial["recipe"]])
        planned = {trial["name"] for trial in described["trials"]}
        described["trials"] += [trial for trial in old["trials"] if trial["name"] not in planned]
        for kind in ("rows", "columns"):
            described[kind] = {**described[kind], **{k: v for k, v in old[kind].items() if k not in described[kind]}}
        (self.path / "recipes").mkdir(exist_ok=True)
        for name, text in texts.items():
            copy = self._copies[name] = self.path / copy_name(name, text)
            copy.parent.mkdir(exist_ok=True)
            write_text(copy, text)
        write_json(known, {"schema": "rift.sweep/1", "created": old["created"], **described, "text": plan.text})

    def _check_same(self, before: dict[str, Any], plan: Plan, named: list[str]) -> None:
        """A trial that was planned before must still be the same recipe; raise UsageError. named: rows and columns of before."""
        shared = [trial for trial in plan.trials if trial.name in before]
        searched = plan.cells and not {*plan.rows, *plan.columns} - {*named}  # in another space: its old runs are of use still
        if before and not shared and not searched:
            raise UsageError(f"{self.path}: holds another sweep, of which this file names no trial; choose another --out")
        for trial in shared:
            old = before[trial.name]
            if old["digest"] == trial.digest:
                continue
            copy = self.path / old["copy"]
            was = recipes.flatten(recipes.parse(recipes.read(copy), copy.name, old["overrides"]).resolved)
            is_now = recipes.flatten(plan.texts.of(trial).resolved)
            changed = [f"{k}: {was.get(k)} -> {is_now.get(k)}" for k in sorted(was | is_now) if was.get(k) != is_now.get(k)]
            if changed:  # else only the digest did: another version fills in more defaults
                raise UsageError(
                    f"{self.path}: trial {trial.name} was planned with other settings ({'; '.join(changed[:3])}); "
                    "put the sweep file and its recipes back, or choose another --out"
                )

    def recipe_of(self, name: str) -> Path:
        """The copy of a recipe that `begin` has made."""
        return self._copies[name]

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

    def job_of(self, trial: Trial) -> str | None:
        """The cluster's job that a trial was submitted as, and has not ended."""
        file = self.path / "status.json"
        return read_json(file).get(trial.name, {}).get("job") if file.is_file() else None

    def close(self) -> None:
        """Let others run it."""
        self._lock.close()


def copy_name(recipe: str, text: str) -> str:
    """Where a recipe is kept below a sweep folder, named by its content too: two folders may hold recipes of one name."""
    stem = Path(recipe).name.removesuffix(".yaml")
    return f"recipes/{hashlib.sha256(text.encode()).hexdigest()[:8]}/{stem}.yaml"


def read_sweep(path: Path) -> dict[str, Any]:
    """sweep.json of a folder; raise UsageError when it is none."""
    return read_json(path / "sweep.json", f"{path}: not a sweep folder (no sweep.json)")


def standings(sweep: Path, names: Iterable[str]) -> dict[str, Standing]:
    """How every named trial stands."""
    file = sweep / "status.json"
    noted = read_json(file) if file.is_file() else {}
    return {name: _standing(sweep / "trials" / name, noted.get(name, {})) for name in names}


def standing(sweep: Path, name: str) -> Standing:
    """How one trial stands."""
    return standings(sweep, [name])[name]


def _standing(run: Path, noted: dict[str, Any]) -> Standing:
    """By its own run folder first: that is written by the run itself. noted: what the sweep wrote down of it."""
    try:
        record = files.read_json(run / "run.json")
    except (OSError, ValueError):
        record = {}
    state = record.get("status")
    seconds = noted.get("seconds")
    if state == "completed":
        return Standing("completed", seconds=seconds)
    if state == "running" and in_progress(run):
        return Standing("running")
    if noted.get("state") == "pruned":
        return Standing("pruned", seconds=seconds)
    if noted.get("state") == "failed" or state == "failed":
        return Standing("failed", noted.get("error") or record.get("error"), noted.get("code"), seconds=seconds)
    return Standing("interrupted" if record else "waiting")


def progress(sweep: Path, name: str) -> str:
    """Where a running trial is: its last evaluation."""
    rows = [row for row in read_rows(sweep / "trials" / name) if row["kind"] in ("eval", "step")]
    return f"epoch {rows[-1]['epoch']}, step {rows[-1]['step']}" if rows else "starting"
