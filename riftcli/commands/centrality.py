"""rift centrality."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from riftcli.commands.common import AsJson, Out


def centrality(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN RUN...", help="Two or more runs per method.")],
    pretrained: Annotated[bool, typer.Option(help="Also the distance to the pretrained weights.")] = False,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Distance of each run's backbone to the mean of all runs of its method."""
    from riftcli.commands import common
    from riftcli.console import print_grid
    from riftcli.evaluation.candidates import open_runs
    from riftcli.evaluation.evaluators.centrality import Centrality
    from riftcli.runs.result_table import format_number

    common.check_out(out)
    table = Centrality(pretrained).measure(open_runs(runs, []), [], None)
    keys = ["distance", "relative", "rms", *(["from_pretrained"] if pretrained else [])]
    lines = [[row["method"], row["model"], *(format_number(row[key]) for key in keys)] for row in table.rows]
    for mean in table.tables["averages"]:
        lines.append([mean["method"], "mean", *(format_number(mean[key], mean[f"{key}_std"]) for key in keys)])
    print_grid("distance to the centre of the runs of a method (L2 over the backbone)", ["method", "run", *keys], lines)
    common.finish(None, table, [], out, as_json)
