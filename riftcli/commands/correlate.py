"""rift correlate."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from riftcli.commands.common import AsJson, Out


class Points(StrEnum):
    """What is a point."""

    all = "all"
    final = "final"


def correlate(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Runs, or folders of --repeats.")],
    x: Annotated[str, typer.Option("--x", help="The similarity.")] = "cka",
    y: Annotated[list[str], typer.Option("--y", help="Repeatable; default: kNN, ECE and accuracy.")] = [],  # noqa: B006
    bins: Annotated[int, typer.Option(min=2, help="Equally spaced values that x is rounded to.")] = 10,
    points: Annotated[
        Points, typer.Option(help="all: every evaluation on validation; final: each run once, on test.")
    ] = Points.all,
    trim: Annotated[float, typer.Option(min=0, help="Leave out points so many interquartile ranges outside; 0 keeps all.")] = 0.0,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Linear relation of similarity with kNN, calibration and accuracy over many runs, over means of bins."""
    from riftcli.commands import common
    from riftcli.console import print_grid
    from riftcli.evaluation.candidates import open_runs
    from riftcli.evaluation.evaluators.correlation import Correlation
    from riftcli.runs.result_table import format_number

    common.check_out(out)
    candidates = open_runs(runs, [])
    evaluator = Correlation(x, tuple(y), bins, points.value, trim)
    table = evaluator.measure(candidates, [], None)
    keys = ["points", "left_out", "bins", "binned_r", "binned_p", "binned_slope", "single_r"]
    lines = [[row["y"], *(format_number(row[key]) for key in keys)] for row in table.rows]
    print_grid(f"against {x}, {len(candidates)} runs", ["y", *keys], lines)
    common.finish(evaluator, table, [], out, as_json)
