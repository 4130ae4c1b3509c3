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
    from riftcli.console import print_grid
    from riftcli.runs.result_table import averaged, format_number

    sets = list(dict.fromkeys(row["data"] for row in table.rows))
    for metric in table.settings["metrics"]:
        cells = averaged([row for row in table.rows if row[metric] is not None], ["group", "data"], metric)
        lines = []
        for group in dict.fromkeys(row["group"] for row in table.rows):
            found = [cells.get((group, name)) for name in sets]
            texts = ["" if cell is None else format_number(cell[0], cell[1] if cell[2] > 1 else None) for cell in found]
            means: list[Any] = [cell[0] for cell in found if cell is not None]
            whole = [format_number(sum(means) / len(means))] if len(sets) > 1 and len(means) == len(sets) else [""]
            lines.append([group, *texts, *(whole if len(sets) > 1 else [])])
        print_grid(f"zero-shot {metric}", ["model", *sets, *(["mean"] if len(sets) > 1 else [])], lines)
