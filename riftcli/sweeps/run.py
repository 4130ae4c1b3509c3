"""A sweep from its file to its table: plan, folder, pool, and what is written of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from riftcli.console import note_line, print_grid
from riftcli.runs.folder import write_json
from riftcli.runs.provenance import now
from riftcli.runs.result_table import write_csv
from riftcli.sweeps.folder import Standing, SweepFolder, progress
from riftcli.sweeps.plan import Plan, Trial
from riftcli.sweeps.pool import Pool, failure, gpus, run_here
from riftcli.sweeps.table import KEPT, SweepTable, flat, grid, markdown, read_table


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
    or slurm (jobs of a cluster; all are submitted at once).
    """
    path = out or Path("sweeps") / plan.name
    folder = SweepFolder(path)
    try:
        folder.begin(plan)
        slots = [None] if in_process or on != "local" else gpus(device)
        slots = [slots[i % len(slots)] for i in range(jobs or len(slots))]
        where = f"{len(slots)} at a time" if on == "local" else f"as jobs of {on}"
        note_line(f"sweep folder: {path}; {len(plan.trials)} trials, {where}; look: rift sweep show {path}")

        def tell(trial: Trial, found: Standing, left: int) -> None:
            took = f", {found.seconds:.0f} s" if found.seconds else ""
            what = found.state if found.error is None else f"{found.state}: {found.error}"
            note_line(f"{trial.name}: {what}{took}; {left} left")

        if on != "local":
            from riftcli.sweeps.cluster import run_on_cluster

            run_on_cluster(folder, plan.trials, device, retry_failed, tell, plan.slurm, on)
        elif in_process:
            run_here(folder, plan.trials, device, retry_failed, tell)
        else:
            Pool(folder, slots, device, tell).run(plan.trials, retry_failed)
        report = present(path)
        table = read_table(path)
        failed = {name: found for name, found in table.standings.items() if found.state == "failed"}
        if failed:
            raise failure(failed, len(table.standings))
        return report
    finally:
        folder.close()


def present(path: Path) -> dict[str, Any]:
    """Print and write the table as it stands: table.csv, table.md, pareto.png with its CSV; returns the report."""
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
        elif found.state == "failed":
            note_line(f"failed: {name}: {found.error}")
    report = {
        "schema": "rift.sweep_report/1",
        "command": "sweep",
        "created": now(),
        "trials": table.counts(),
        "select": {f"{row} / {column}": name for (row, column), name in table.select.items()},
        "points": flat(table),
        "failed": {name: found.error for name, found in table.standings.items() if found.state == "failed"},
    }
    if table.points:
        write_csv(path / "table.csv", flat(table))
        (path / "table.md").write_text(markdown(table), encoding="utf-8")
        _draw(table, path)
        note_line(f"table: {path / 'table.md'} and table.csv; plot: {path / 'pareto.png'}")
    write_json(path / "report.json", report)
    return report


def _draw(table: SweepTable, path: Path) -> None:
    from riftcli.report.plots.pareto import plot_pareto

    similarity = next((name for name in KEPT if any(name in p.metrics for p in table.points)), "cka")
    rows, columns = table.described["rows"], table.described["columns"]
    names = [name for name in ("acc", "map") if any(name in p.metrics for p in table.points)]
    score = names[0] if len(names) == 1 else "accuracy or mean average precision"
    drawn = []
    for p in table.points:
        if p.kept is None or p.score is None:
            continue
        spread = next((entry["std"] for entry in p.metrics.values() if entry["mean"] == p.score), None)
        kept = p.metrics[similarity]["std"] if similarity in p.metrics else None
        drawn.append(
            {
                "row": rows.get(p.row, p.row),
                "column": columns.get(p.column, p.column),
                "note": p.shown,
                "x": p.kept,
                "x_std": kept,
                "y": p.score,
                "y_std": spread,
                "chosen": p.chosen,
                "front": p.front,
            }
        )
    if drawn:
        plot_pareto(drawn, path / "pareto.png", score, similarity)
