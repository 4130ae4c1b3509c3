"""rift similarity."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from riftcli.commands.common import AsJson, DataSets, Device, Models, Out, Overrides, Runs, Split

if TYPE_CHECKING:
    from riftcli.runs.result_table import ResultTable


class Layers(StrEnum):
    """Which features are compared."""

    last = "last"
    all = "all"


def similarity(
    run: Runs = [],  # noqa: B006 - typer copies it
    model: Models = [],  # noqa: B006
    against: Annotated[str, typer.Option(help="pretrained, a run, a folder of weights, or a timm model.")] = "pretrained",
    metrics: Annotated[str, typer.Option(help="Comma-separated, e.g. cka,rsa,procrustes; all for every one.")] = "",
    layers: Annotated[
        Layers, typer.Option(help="all: also CKA of every layer with every layer, and its heat map.")
    ] = Layers.last,
    maps: Annotated[bool, typer.Option("--map", help="Also a PCA and a t-SNE map of the samples, before and after.")] = False,
    data: DataSets = [],  # noqa: B006
    split: Split = "test",
    bootstrap: Annotated[
        int, typer.Option(min=0, help="Random halves behind the 95 % intervals, where they need any; 0 for no intervals.")
    ] = 30,
    seed: Annotated[int, typer.Option(min=0, help="Of the random halves.")] = 0,
    overrides: Overrides = [],  # noqa: B006
    device: Device = "auto",
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Similarity of features to the pretrained model's, or to any other model's, on the same images."""
    from riftcli.commands import common
    from riftcli.evaluation.evaluators.similarity import DEFAULT, Similarity, measures

    common.check_out(out)
    wanted = measures() if metrics == "all" else [m.strip() for m in metrics.split(",") if m.strip()] or DEFAULT
    evaluator = Similarity(tuple(wanted), split, layers is Layers.all, bootstrap, seed, maps)
    common.measure_against(evaluator, print_similarity, run, model, against, data, overrides, device, out, as_json)


def print_similarity(table: ResultTable) -> None:
    """Measures down, models across."""
    from riftcli.console import note_line, print_grid
    from riftcli.runs.result_table import averaged, format_number

    cells = averaged(table.rows, ["data", "metric", "group"], "value")
    for data in dict.fromkeys(row["data"] for row in table.rows):
        rows = [row for row in table.rows if row["data"] == data]
        groups = list(dict.fromkeys(row["group"] for row in rows))
        single = {(row["metric"], row["group"]): row for row in rows}
        lines = []
        for metric in dict.fromkeys(row["metric"] for row in rows):
            texts = []
            for group in groups:
                mean, std, count = cells[data, metric, group]
                row = single[metric, group]
                interval = f" [{row['low']:.4f}, {row['high']:.4f}]" if count == 1 and row["low"] is not None else ""
                texts.append(format_number(mean, std) + interval)
            lines.append([metric, *texts])
        print_grid(f"{data}, {rows[0]['n']} images, against {rows[0]['reference']}", ["measure", *groups], lines)
        free = list(dict.fromkeys(row["metric"] for row in rows if row["interval"] == "population"))
        if any(row["interval"] for row in rows):
            whole = f"; of the measure with any number of images: {', '.join(free)}" if free else ""
            note_line(f"[low, high]: 95 % intervals of the measure with this number of images{whole}")
