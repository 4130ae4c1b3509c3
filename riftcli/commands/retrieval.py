"""rift retrieval."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from riftcli.commands.common import AsJson, DataSets, Device, Models, Out, Overrides, Runs

if TYPE_CHECKING:
    from riftcli.runs.result_table import ResultTable

OptionalStr = Optional[str]  # noqa: UP045 - typer reads it at run time


def retrieval(
    run: Runs = [],  # noqa: B006 - typer copies it
    model: Models = [],  # noqa: B006
    against: Annotated[
        str, typer.Option(help="The old model: pretrained, a run, a folder of weights, or a name.")
    ] = "pretrained",
    maps: Annotated[list[Path], typer.Option("--map", help="A map of rift align; repeatable.")] = [],  # noqa: B006
    data: DataSets = [],  # noqa: B006
    query: Annotated[str, typer.Option(help="Split of the queries.")] = "test",
    gallery: Annotated[OptionalStr, typer.Option(help="Split of the gallery. Default: the queries, each without itself.")] = None,
    places: Annotated[str, typer.Option(help="k of CMC-k, comma-separated.")] = "1,5",
    backfill: Annotated[bool, typer.Option("--backfill", help="Also a gallery that is renewed bit by bit.")] = False,
    draws: Annotated[int, typer.Option(min=100, help="Of the bootstrap behind the verdict.")] = 2000,
    seed: Annotated[int, typer.Option(min=0, help="Of the bootstrap and the random order.")] = 0,
    overrides: Overrides = [],  # noqa: B006
    device: Device = "auto",
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """May the old gallery be kept: CMC and mAP of old and new queries in old and new galleries, and the verdict."""
    from riftcli.commands import common
    from riftcli.evaluation.evaluators.retrieval import Retrieval
    from riftcli.models.feature_map import load_map

    common.check_out(out)
    numbers = common.whole_numbers(places, "--places", "1,5,10")
    opened = {name: load_map(path) for name, path in zip(names_of_maps(maps), maps, strict=True)}
    evaluator = Retrieval(query, gallery, numbers, None, opened, backfill, draws, seed)
    common.measure_against(evaluator, print_retrieval, run, model, against, data, overrides, device, out, as_json)


def names_of_maps(paths: list[Path]) -> list[str]:
    """What tables call them: the folder of a map, or its file's own name, with as many folders above as tell them apart."""
    from riftcli.errors import UsageError
    from riftcli.models.feature_map import FILE

    places = [path.expanduser().resolve() for path in paths]
    if len(set(places)) < len(places):
        raise UsageError("the same --map is given twice")
    folders = [place.parent if place.name == FILE else place for place in places]
    plain = [(folder.with_suffix("") if folder.is_file() else folder).parts for folder in folders]
    found = []
    for i, own in enumerate(plain):
        others = [other for j, other in enumerate(plain) if j != i]
        depth = next((n for n in range(1, len(own)) if all(other[-n:] != own[-n:] for other in others)), len(own))
        found.append("/".join(own[-depth:]))
    return found


def print_retrieval(table: ResultTable) -> None:
    """One table per data set and new model: pairs down."""
    from riftcli.console import print_grid
    from riftcli.runs.result_table import averaged, format_number

    scores = [key for key in table.rows[0] if key.startswith("cmc_")] + ["map"]
    for name, group in dict.fromkeys((row["data"], row["group"]) for row in table.rows):
        rows = [row for row in table.rows if (row["data"], row["group"]) == (name, group)]
        lines = []
        for pair in dict.fromkeys((row["through"], row["queries"], row["gallery"]) for row in rows):
            own = [row for row in rows if (row["through"], row["queries"], row["gallery"]) == pair]
            cells: list[Any] = [averaged(own, ["group"], key)[group,] for key in [*scores, "gain"]]
            texts = [format_number(mean, std if count > 1 else None) for mean, std, count in cells[:-1]]
            crossing = own[0]["compatible"] is not None
            lines.append([f"{pair[1]} / {pair[2]}", pair[0] or "", *texts, *(_verdict(own, cells[-1]) if crossing else ["", ""])])
        against = rows[0]["reference"]
        title = f"{name}, {rows[0]['n']} queries, {rows[0]['gallery_n']} in the gallery; old: {against}, new: {group}"
        print_grid(
            title,
            [
                "queries / gallery",
                "map",
                *(key.replace("cmc_", "CMC-").replace("map", "mAP") for key in scores),
                "gain",
                "compatible",
            ],
            lines,
        )


def _verdict(rows: list[dict[str, Any]], share: Any) -> list[str]:
    """The gain, and the verdict with its interval, or in how many of the runs it holds."""
    from riftcli.runs.result_table import format_number

    gain = "" if share[0] is None else format_number(share[0], share[1] if share[2] > 1 else None)
    if len(rows) > 1:
        return [gain, f"{sum(row['compatible'] for row in rows)} of {len(rows)}"]
    row = rows[0]
    return [gain, f"{'yes' if row['compatible'] else 'no'} [{row['low']:+.4f}, {row['high']:+.4f}]"]
