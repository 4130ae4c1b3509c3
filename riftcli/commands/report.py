"""rift report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from riftcli.commands.common import Device, OptionalPath, Overrides

OptionalText = Optional[str]  # noqa: UP045 - typer reads it at run time


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Runs, or folders of --repeats.")],
    out: Annotated[OptionalPath, typer.Option(help="The page; default: RUN/report.html, or report.html for several.")] = None,
    baseline: Annotated[OptionalText, typer.Option(help="Row that changes refer to; default: full finetuning.")] = None,
    evaluate: Annotated[
        bool, typer.Option("--evaluate", help="First measure what is missing: calibration, similarity, sharpness, attention.")
    ] = False,
    overrides: Overrides = [],  # noqa: B006 - typer copies it
    device: Device = "auto",
) -> None:
    """One self-contained HTML page on one run or many."""
    from riftcli import dist
    from riftcli.console import note_line
    from riftcli.errors import UsageError
    from riftcli.evaluation.candidates import open_runs
    from riftcli.report.page import write_page
    from riftcli.report.records import record

    if dist.launched():
        raise UsageError("rift report runs in one process: start it without torchrun")
    if overrides and not evaluate:
        raise UsageError(f"--set {overrides[0]}: only --evaluate reads data; without it the page shows what the runs hold")
    candidates = open_runs(runs, overrides)
    target = out or (runs[0] / "report.html" if len(runs) == 1 else Path("report.html"))
    if target.is_dir() or not target.absolute().parent.is_dir():
        raise UsageError(f"--out {target}: not a file that can be written")  # before the work, not after it
    for candidate in candidates:
        record(candidate)  # an unfinished run is told before the work, too
    if evaluate:
        from riftcli.api.present import fill

        fill(candidates, overrides, dist.init(device))
    write_page(target, candidates, baseline)
    note_line(f"page: {target}")
