"""rift zeroshot."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from riftcli.commands.common import AsJson, DataSets, Device, Models, Out, Overrides, Pretrained, Runs, Split

if TYPE_CHECKING:
    from riftcli.runs.result_table import ResultTable

OptionalText = Optional[str]  # noqa: UP045 - typer reads it at run time


def zeroshot(
    run: Runs = [],  # noqa: B006 - typer copies it
    model: Models = [],  # noqa: B006
    data: DataSets = [],  # noqa: B006
    templates: Annotated[
        list[str],
        typer.Option(help="A shipped set (openai80, flowers, ...), or a template with {}; repeatable. Default: the recipe's."),
    ] = [],  # noqa: B006
    class_names: Annotated[
        OptionalText, typer.Option(help="A shipped set, or a file with a name a line. Default: the recipe's.")
    ] = None,
    metrics: Annotated[str, typer.Option(help="Comma-separated.")] = "acc,f1,ece",
    split: Split = "test",
    pretrained: Pretrained = True,
    overrides: Overrides = [],  # noqa: B006
    device: Device = "auto",
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Accuracy on classes that a model with a text tower is only told the names of."""
    from riftcli.commands import common
    from riftcli.evaluation.evaluators.zeroshot import ZeroShot

    common.check_out(out)
    evaluator = ZeroShot(tuple(m.strip() for m in metrics.split(",") if m.strip()), tuple(templates), class_names, split)
    common.measure_beside_pretrained(evaluator, print_zeroshot, run, model, data, overrides, pretrained, device, out, as_json)


def print_zeroshot(table: ResultTable) -> None:
    """Models down, data sets across and their mean, for every metric."""
    from riftcli.commands.common import print_by_data_set
    from riftcli.runs.result_table import averaged

    sets = list(dict.fromkeys(row["data"] for row in table.rows))
    for metric in table.settings["metrics"]:
        cells: dict[str, dict[str, Any]] = {row["group"]: {} for row in table.rows}
        known = [row for row in table.rows if row[metric] is not None]
        for (group, name), (mean, std, _) in averaged(known, ["group", "data"], metric).items():
            cells[group][name] = (mean, std)
        print_by_data_set(f"zero-shot {metric}", sets, cells)
