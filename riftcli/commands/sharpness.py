"""rift sharpness."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from riftcli.commands.common import AsJson, DataSets, Device, Out, Overrides, Runs, Split

if TYPE_CHECKING:
    from riftcli.runs.result_table import ResultTable


class Method(StrEnum):
    """How the worst weights nearby are sought."""

    sam = "sam"
    pga = "pga"
    random = "random"


def sharpness(
    run: Runs = [],  # noqa: B006 - typer copies it
    rho: Annotated[float, typer.Option(help="Radius of the ball, L2 over all weights.")] = 0.01,
    method: Annotated[
        Method, typer.Option(help="sam: one gradient step; pga: several, projected; random: a check.")
    ] = Method.sam,
    adaptive: Annotated[bool, typer.Option("--adaptive", help="Radius relative to each weight (ASAM).")] = False,
    steps: Annotated[int, typer.Option(min=1, help="Steps of pga.")] = 20,
    restarts: Annotated[int, typer.Option(min=0, help="pga: also from so many random points of the sphere.")] = 0,
    draws: Annotated[int, typer.Option(min=1, help="Points of random.")] = 100,
    data: DataSets = [],  # noqa: B006
    split: Split = "test",
    seed: Annotated[int, typer.Option(min=0, help="Of the random points.")] = 0,
    overrides: Overrides = [],  # noqa: B006
    device: Device = "auto",
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """How much the loss of a finished run can rise when its weights move a little."""
    from riftcli.commands import common
    from riftcli.evaluation.evaluators.sharpness import Sharpness
    from riftcli.functional.sharpness import Ascent

    common.check_out(out)
    evaluator = Sharpness(Ascent(method.value, rho, adaptive, steps, restarts, draws, seed), split)
    candidates = common.open_candidates(run, [], overrides, own_data=not data)
    sets = common.open_sets(data, candidates, overrides) if data else []
    common.measure(evaluator, print_sharpness, candidates, sets, candidates[0].recipe, device, out, as_json)


def print_sharpness(table: ResultTable) -> None:
    """The three blocks of RIFT paper Table 4: models down, data sets across, and their mean."""
    from riftcli.commands.common import print_by_data_set
    from riftcli.console import note_line
    from riftcli.evaluation.evaluators.sharpness import table_4

    sets = list(dict.fromkeys(row["data"] for row in table.rows))
    for title, lines in table_4(table.rows):
        print_by_data_set(f"{title} (rho {table.settings['rho']:g})", sets, dict(lines))
    if table.settings["method"] == "sam":
        note_line(
            "at least: sam looks at one point; --method pga --steps 60 --restarts 3 looks further, which tells with a larger rho"
        )
    else:
        note_line("at least: the highest of the points that were looked at")
