"""rift compare."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Optional

import typer

from riftcli.commands.common import AsJson, Out, check_out
from riftcli.files import write_bytes

OptionalText = Optional[str]  # noqa: UP045 - typer reads it at run time


def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Runs, or folders of --repeats.")],
    metrics: Annotated[str, typer.Option(help="Columns, comma-separated; default: all that every run has.")] = "",
    baseline: Annotated[OptionalText, typer.Option(help="Row that changes refer to; default: full finetuning.")] = None,
    by_method: Annotated[bool, typer.Option("--by-method", help="Rows are methods, not folders.")] = False,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """One table of finished runs: mean and spread over seeds, best in bold, change against the baseline."""
    from riftcli.console import note_line, print_grid
    from riftcli.evaluation.candidates import open_runs
    from riftcli.report import compare as tables
    from riftcli.report import formats
    from riftcli.report.figures import trade_off_svg
    from riftcli.report.records import record, start_records
    from riftcli.runs.provenance import now

    check_out(out)
    records = [record(candidate) for candidate in open_runs(runs, [])]
    records = [*start_records(records), *records]
    table = tables.compare(records, [m.strip() for m in metrics.split(",") if m.strip()], baseline, by_method)
    names = list(table.rows)
    lines = []
    for column in table.columns:
        texts = []
        for name in names:
            cell = table.rows[name].get(column)
            texts.append(formats.text_of(column, cell) + ("*" if cell and cell.best else ""))
        lines.append([column, *texts])
    tested = any(cell.p is not None for row in table.rows.values() for cell in row.values())
    against = f"; changes against {table.baseline}" if table.baseline else ""
    against += ", p of the paired t test" if tested else ""
    print_grid(f"{sum(not r.is_start for r in records)} runs, mean +- std over seeds, * is best{against}", ["", *names], lines)
    if out is not None:
        for path in formats.write(out, table):
            note_line(f"table: {path}")
        picture = trade_off_svg(table)
        if picture is not None:
            write_bytes(out / "compare.svg", picture)
            note_line(f"plot: {out / 'compare.svg'}")
    if as_json:
        report = {"schema": "rift.compare/1", "command": "compare", "created": now(), "baseline": table.baseline}
        print(json.dumps({**report, "rows": formats.flat(table)}, indent=1))
