"""A sweep from its file to its table: plan, folder, pool, and what is written of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from riftcli.console import note_line, print_grid
from riftcli.files import write_json, write_text
from riftcli.runs.provenance import now
from riftcli.runs.result_table import write_csv
from riftcli.sweeps.folder import Standing, SweepFolder, progress
from riftcli.sweeps.jobs import run_jobs
from riftcli.sweeps.plan import Plan
from riftcli.sweeps.pool import Pool, Tell, failure, go_on, gpus, run_here
from riftcli.sweeps.ray_cluster import Ray
from riftcli.sweeps.search import Search
from riftcli.sweeps.slurm import Slurm
from riftcli.sweeps.table import SweepTable, flat, grid, markdown, read_table
from riftcli.sweeps.trial import Trial


def run_sweep(
    plan: Plan,
    out: Path | None = None,
    jobs: int | None = None,
    device: str = "auto",
    retry_failed: bool = False,
    in_process: bool = False,
    on: str = "local",
) -> dict[str, Any]:
    """Run what is not done yet and present it; raise RiftError at the end where trials failed.

    jobs: trials at a time; None is one for each GPU, one on a CPU. in_process: one after another in this process. on: local,
    slurm or ray (jobs of a cluster; all that are known are submitted at once).
    """
    path = out or Path("sweeps") / plan.name
    folder = SweepFolder(path)
    try:
        search = Search(path, plan) if plan.cells else None
        plan = plan.plus(search.known() if search else [])
        folder.begin(plan)
        places = [None] if in_process or on != "local" else gpus(device)
        slots = [places[i % len(places)] for i in range(jobs or len(places))]
        where = f"{len(slots)} at a time" if on == "local" else f"as jobs of {on}"
        count = f"{len(plan.trials)} trials" + f", and {_searched(plan)}" * bool(plan.cells)
        note_line(f"sweep folder: {path}; {count}, {where}; look: rift sweep show {path}")

        def tell(trial: Trial, found: Standing, left: int) -> None:
            took = f", {found.seconds:.0f} s" if found.seconds else ""
            what = found.state if found.error is None else f"{found.state}: {found.error}"
            note_line(f"{trial.name}: {what}{took}; {left} left")

        stops = search.stops if search else go_on
        with _executor(plan, folder, on, slots, in_process, device, tell, stops) as execute:
            execute(plan.trials, retry_failed)
            while search is not None:
                search.tell()
                asked = search.ask(plan.optuna.at_once or (len(slots) if on == "local" else 4))
                if not asked:
                    break
                plan = plan.plus(asked)
                folder.begin(plan)
                execute(asked, retry_failed)
        table, report = present(path)
        if table.failed():
            raise failure(table.failed(), len(table.standings))
        return report
    finally:
        folder.close()


def _searched(plan: Plan) -> str:
    settings = len(plan.cells) * plan.optuna.trials
    return f"{settings} settings that Optuna chooses ({plan.optuna.sampler})"


@contextmanager
def _executor(
    plan: Plan,
    folder: SweepFolder,
    on: str,
    slots: list[str | None],
    in_process: bool,
    device: str,
    tell: Tell,
    stops: Callable[[Trial], bool],
) -> Iterator[Callable[[Sequence[Trial], bool], None]]:
    """What runs a list of trials to their end: (trials, retry failed ones) -> None."""
    if on == "slurm":
        scheduler = Slurm(folder.path, plan.slurm)
        yield lambda trials, again: run_jobs(scheduler, folder, trials, device, again, tell, stops, poll=5.0)
    elif on == "ray":
        ray = Ray(plan.ray, device)
        try:
            yield lambda trials, again: run_jobs(ray, folder, trials, device, again, tell, stops, poll=0.5)
        finally:
            ray.close()
    elif in_process:
        yield lambda trials, again: run_here(folder, trials, device, again, tell)
    else:
        yield Pool(folder, slots, device, tell, stops).run


def present(path: Path) -> tuple[SweepTable, dict[str, Any]]:
    """Print and write the table as it stands: table.csv, table.md, pareto.png with its CSV; returns it and the report."""
    table = read_table(path)
    counts = ", ".join(f"{count} {state}" for state, count in table.counts().items())
    chosen = ", ".join(dict.fromkeys(table.select.values()))
    several = any(point.settings for point in table.points)
    how = f"; settings chosen by {chosen} on validation, numbers are of the test split" if several else ""
    header, lines = grid(table)
    paper = "; (published)" if table.described["paper"] else ""
    print_grid(f"{path}: {counts}; mean +- std over seeds{how}{paper}", header, lines)
    for name, found in table.standings.items():
        if found.state == "running":
            note_line(f"running: {name}, {progress(path, name)}")
    for name, found in table.failed().items():
        note_line(f"failed: {name}: {found.error}")
    report = {
        "schema": "rift.sweep_report/1",
        "command": "sweep",
        "created": now(),
        "trials": table.counts(),
        "select": {f"{row} / {column}": name for (row, column), name in table.select.items()},
        "points": flat(table),
        "failed": {name: found.error for name, found in table.failed().items()},
    }
    if table.points:
        write_csv(path / "table.csv", flat(table))
        write_text(path / "table.md", markdown(table))
        _draw(table, path)
        note_line(f"table: {path / 'table.md'} and table.csv; plot: {path / 'pareto.png'}")
    write_json(path / "report.json", report)
    return table, report


def _draw(table: SweepTable, path: Path) -> None:
    from riftcli.report.plots.pareto import plot_pareto

    rows, columns = table.described["rows"], table.described["columns"]
    placed = [(point, point.place) for point in table.points if point.place is not None]
    drawn = [
        {
            "row": rows.get(point.row, point.row),
            "column": columns.get(point.column, point.column),
            "note": point.shown,
            "x": place[0],
            "x_std": point.metrics[point.kept]["std"],
            "y": place[1],
            "y_std": point.metrics[point.score]["std"],
            "chosen": point.chosen,
            "front": point.front,
        }
        for point, place in placed
    ]
    if drawn:
        scores = {point.score for point, _ in placed}
        score = scores.pop() if len(scores) == 1 else "accuracy or mean average precision"
        plot_pareto(drawn, path / "pareto.png", score, placed[0][0].kept)
