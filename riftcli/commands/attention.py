"""rift attention."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from riftcli.commands.common import AsJson, DataSets, Device, Out, Overrides, Runs

if TYPE_CHECKING:
    from riftcli.runs.result_table import ResultTable


def attention(
    run: Runs = [],  # noqa: B006 - typer copies it
    images: Annotated[
        list[Path], typer.Option("--image", help="An image or a folder of them; repeatable. Default: of the split.")
    ] = [],  # noqa: B006
    count: Annotated[int, typer.Option(min=1, help="Images at most, of the split or of --image.")] = 8,
    split: Annotated[str, typer.Option(help="The split that the sample is drawn from.")] = "test",
    block: Annotated[int, typer.Option(help="Block whose attention is shown, from 0; negative from the end.")] = -1,
    heads: Annotated[bool, typer.Option(help="Also a picture with every head.")] = True,
    seed: Annotated[int, typer.Option(min=0, help="Of the sample.")] = 0,
    data: DataSets = [],  # noqa: B006
    overrides: Overrides = [],  # noqa: B006
    device: Device = "auto",
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Where the class token looks, before and after finetuning, and how far apart the two are."""
    from riftcli.commands import common
    from riftcli.evaluation.evaluators.attention import Attention

    common.check_out(out)
    evaluator = Attention(count, split, block, heads, seed, tuple(images))
    candidates = common.open_candidates(run, [], overrides, own_data=not data)
    listed = candidates[:1] if images else candidates  # with images of one's own, the data only says how files are read
    source = common.exactly_one(common.open_sets(data, listed, overrides), "--data")
    common.measure(evaluator, print_attention, candidates, [source], candidates[0].recipe, device, out, as_json)


def print_attention(table: ResultTable) -> None:
    """Models down; the distance of the mean maps, of the single heads' maps, and the cosine, averaged over the images."""
    from riftcli.console import print_grid
    from riftcli.runs.result_table import averaged, format_number

    keys = ("js_distance", "js_distance_heads", "cosine")
    cells = {key: averaged(table.rows, ["group"], key) for key in keys}
    groups = dict.fromkeys(row["group"] for row in table.rows)
    lines = [[group, *(format_number(cells[key][group,][0]) for key in keys)] for group in groups]
    shown, among = table.settings["images"], table.settings["among"]
    which = f"{shown} of {among} images" if shown < among else f"{shown} images"
    print_grid(f"attention before and after, mean over {which}", ["model", *keys], lines)
