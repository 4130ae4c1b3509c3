"""Settings that Optuna chooses one after another, in place of lists: samplers, pruning, and what they remember."""

from __future__ import annotations

import hashlib
import json
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zlib import crc32

from riftcli.catalog import component
from riftcli.console import note_line
from riftcli.errors import EnvironmentError, UsageError
from riftcli.files import write_bytes
from riftcli.runs.reader import read_report, read_rows
from riftcli.sweeps.file import Range
from riftcli.sweeps.folder import standing, standings
from riftcli.sweeps.plan import Cell, Plan
from riftcli.sweeps.trial import Trial

JOURNAL = "search.log"  # below the sweep folder; Optuna's own format, one line a change
SAMPLERS = {
    "tpe": "TPESampler",
    "random": "RandomSampler",
    "gp": "GPSampler",
    "nsgaii": "NSGAIISampler",
    "qmc": "QMCSampler",
}
PRUNERS = {"none": "NopPruner", "median": "MedianPruner", "halving": "SuccessiveHalvingPruner", "hyperband": "HyperbandPruner"}


class Search:
    """One Optuna study for each cell of the table. Everything it knows is in the journal, so a search that was killed goes on.

    Raises EnvironmentError without Optuna.
    """

    def __init__(self, sweep: Path, plan: Plan) -> None:
        try:
            import optuna
        except ImportError as error:
            raise EnvironmentError("`search` needs Optuna: pip install 'riftcli[search]'") from error
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.sweep, self.options, self.cells = sweep, plan.optuna, plan.cells
        _mend_journal(sweep / JOURNAL)
        self._studies: dict[str, Any] = {}
        self._open: dict[str, _Open] = {}  # group -> what Optuna waits for

    def known(self) -> list[Trial]:
        """The trials of every setting that was asked for before, also by a process that is gone."""
        if not (self.sweep / JOURNAL).is_file():
            return []
        return [
            trial
            for cell in self.cells
            for asked in self._study(cell).trials
            if "settings" in asked.user_attrs
            for trial in self._made(cell, asked)
        ]

    def ask(self, count: int) -> list[Trial]:
        """The trials of up to `count` new settings, fewer at the end, none when every cell has had its number."""
        found: list[Trial] = []
        open_ = {cell.name: self.options.trials - len(self._study(cell).trials) for cell in self.cells}
        asked = 0
        while asked < count and any(left > 0 for left in open_.values()):
            for cell in self.cells:
                if open_[cell.name] > 0 and asked < count:
                    open_[cell.name] -= 1
                    asked += 1
                    found += self._draw(cell)
        return list({trial.name: trial for trial in found}.values())

    def _draw(self, cell: Cell) -> list[Trial]:
        """The trials of a new setting; none where it is no recipe, which is said and counts."""
        from optuna.trial import TrialState

        trial = self._study(cell).ask()
        settings = {key: _drawn(trial, key, span) for key, span in cell.space.items()}
        try:
            cell.make(settings)
        except UsageError as error:
            note_line(f"left out: {str(error).splitlines()[0]}")
            self._study(cell).tell(trial.number, state=TrialState.FAIL)
            return []
        trial.set_user_attr("settings", settings)
        return self._made(cell, trial)

    def tell(self) -> None:
        """Hand every setting whose runs have ended to Optuna. Those that failed are waited for: they may be tried again."""
        from optuna.trial import TrialState

        for cell in self.cells:
            study = self._study(cell)
            for asked in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
                if "settings" not in asked.user_attrs:  # killed between the two
                    study.tell(asked.number, state=TrialState.FAIL)
                    continue
                names = [trial.name for trial in cell.make(asked.user_attrs["settings"])]
                states = {found.state for found in standings(self.sweep, names).values()}
                if states == {"completed"}:
                    values = self._values(cell, names)
                    study.tell(asked.number, values, None if values is not None else TrialState.FAIL)
                elif "pruned" in states:
                    study.tell(asked.number, state=TrialState.PRUNED)

    def stops(self, trial: Trial) -> bool:
        """True where the pruner gives a setting up, by the evaluations of its first seed so far."""
        one = self._open.get(trial.group)
        if one is None or self.options.pruner == "none":
            return False
        size = one.log.stat().st_size if one.log.is_file() else 0
        if one.given_up or size == one.seen:
            return one.given_up
        try:
            rows = [row for row in read_rows(one.log.parent) if row["kind"] == "eval" and row["step"] > 0]
        except ValueError:  # its last line is being written
            return False
        one.seen = size
        for row in rows[one.reported :]:
            if row.get(one.objective) is not None:
                one.asked.report(row[one.objective], row["epoch"])
        if len(rows) > one.reported:  # a pruner that works in rungs answers once for each
            one.given_up = bool(one.asked.should_prune())
        one.reported = len(rows)
        return one.given_up

    def _made(self, cell: Cell, asked: Any) -> list[Trial]:
        """The runs of a setting; while Optuna waits for it, they can be given up."""
        import optuna

        trials = cell.make(asked.user_attrs["settings"])
        known = 0
        if isinstance(asked, optuna.trial.FrozenTrial):
            if asked.state != optuna.trial.TrialState.RUNNING:
                return trials
            known = len(asked.intermediate_values)
            asked = optuna.trial.Trial(self._study(cell), asked._trial_id)
        log = self.sweep / "trials" / trials[0].name / "metrics.jsonl"
        given_up = standing(self.sweep, trials[0].name).state == "pruned"
        self._open[trials[0].group] = _Open(asked, log, cell.objectives[0], known, given_up)
        return trials

    def _study(self, cell: Cell) -> Any:
        """Opened once; a cell whose space or objectives have changed gets a new one, and its runs stay in the table."""
        if cell.name not in self._studies:
            self._studies[cell.name] = self._create(cell)
        return self._studies[cell.name]

    def _create(self, cell: Cell) -> Any:
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        options = self.options
        text = json.dumps([{k: v.model_dump() for k, v in cell.space.items()}, cell.objectives], sort_keys=True)
        up = [component("metric", name)().higher_is_better for name in cell.objectives]
        study = optuna.create_study(
            storage=JournalStorage(JournalFileBackend(str(self.sweep / JOURNAL))),
            pruner=getattr(optuna.pruners, PRUNERS[options.pruner])(),
            study_name=f"{cell.name} {hashlib.sha256(text.encode()).hexdigest()[:8]}",
            directions=["maximize" if better else "minimize" for better in up],
            load_if_exists=True,
        )
        # Cells must not draw the same settings, and a search that goes on not what it drew first.
        seed = (options.seed + crc32(cell.name.encode()) + len(study.trials)) % 2**32
        more = {"scramble": True} if options.sampler == "qmc" else {}
        study.sampler = getattr(optuna.samplers, SAMPLERS[options.sampler])(seed=seed, **more)
        return study

    def _values(self, cell: Cell, names: list[str]) -> list[float] | None:
        """Means over the seeds of each objective on validation; None where one is undefined."""
        reports = [read_report(self.sweep / "trials" / name)["validation"] for name in names]
        rows = [[report.get(name) for report in reports] for name in cell.objectives]
        return None if any(None in row for row in rows) else [statistics.fmean(row) for row in rows]


@dataclass
class _Open:
    """A setting that Optuna waits for. asked: its trial; log: metrics.jsonl of the first seed; reported: evaluations that it
    knows.
    """

    asked: Any
    log: Path
    objective: str
    reported: int
    given_up: bool
    seen: int = -1  # bytes of the log


def _mend_journal(path: Path) -> None:
    """Undo what a kill can leave: a lock that nobody holds (the sweep's own lock says so), and half a last line."""
    Path(f"{path}.lock").unlink(missing_ok=True)
    if path.is_file():
        text = path.read_bytes()
        if text and not text.endswith(b"\n"):
            write_bytes(path, text[: text.rfind(b"\n") + 1])


def _drawn(trial: Any, key: str, span: Range) -> Any:
    """A value as the run gets it: floats with four digits, which name the folder."""
    if span.choices is not None:
        return span.choices[trial.suggest_categorical(key, list(range(len(span.choices))))]
    if span.whole:
        return trial.suggest_int(key, span.low, span.high, step=span.step or 1, log=span.log)
    return float(f"{trial.suggest_float(key, span.low, span.high, step=span.step, log=span.log):.4g}")
