"""rift knn."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from riftcli.commands.common import AsJson, DataSets, Device, Models, Out, Overrides, Pretrained, Runs

if TYPE_CHECKING:
    from riftcli.runs.result_table import ResultTable

OptionalInt = Optional[int]  # noqa: UP045 - typer reads it at run time


class Vote(StrEnum):
    """How neighbours decide."""

    softmax = "softmax"
    majority = "majority"


def knn(
    run: Runs = [],  # noqa: B006 - typer copies it
    model: Models = [],  # noqa: B006
    data: DataSets = [],  # noqa: B006
    k: Annotated[str, typer.Option(help="Numbers of neighbours, comma-separated.")] = "20",
    temperature: Annotated[float, typer.Option(help="Votes are exp(cosine / temperature).")] = 0.07,
    vote: Annotated[Vote, typer.Option(help="softmax is the DINO protocol; majority counts heads.")] = Vote.softmax,
    few_shot: Annotated[OptionalInt, typer.Option(help="Bank images per class, drawn anew --draws times.")] = None,
    draws: Annotated[int, typer.Option(min=1, help="Draws of a few-shot bank.")] = 5,
    probe: Annotated[bool, typer.Option("--probe", help="Also a logistic regression on the bank's features.")] = False,
    pretrained: Pretrained = True,
    seed: Annotated[int, typer.Option(min=0, help="Of the few-shot draws.")] = 0,
    overrides: Overrides = [],  # noqa: B006
    device: Device = "auto",
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Nearest-neighbour accuracy of features, on one or several data sets: train is the bank, test the queries."""
    from riftcli.commands import common
    from riftcli.evaluation.evaluators.knn import Knn

    common.check_out(out)
    numbers = common.whole_numbers(k, "--k", "20 or 10,20,100")
    evaluator = Knn(numbers, temperature, vote.value, few_shot, draws, probe, seed)
    common.measure_beside_pretrained(evaluator, print_knn, run, model, data, overrides, pretrained, device, out, as_json)


def print_knn(table: ResultTable) -> None:
    """One table per classifier: models down, data sets across, and their mean (RIFT paper Table 3)."""
    from riftcli.commands.common import print_by_data_set
    from riftcli.runs.result_table import averaged

    kinds = dict.fromkeys((row["classifier"], row["k"]) for row in table.rows)
    for classifier, k in kinds:
        rows = [row for row in table.rows if (row["classifier"], row["k"]) == (classifier, k)]
        single = {(row["group"], row["data"]): row["std"] for row in rows}  # of few-shot draws
        cells: dict[str, dict[str, Any]] = {row["group"]: {} for row in rows}
        for (group, name), (mean, std, count) in averaged(rows, ["group", "data"], "acc").items():
            cells[group][name] = (mean, std if count > 1 else single[group, name])
        title = f"{classifier}{'' if k is None else f', k = {k}'}{_shots(rows)}: accuracy"
        print_by_data_set(title, list(dict.fromkeys(row["data"] for row in rows)), cells)


def _shots(rows: list[dict[str, Any]]) -> str:
    return f", {rows[0]['shots']} images per class" if rows[0]["shots"] else ""
