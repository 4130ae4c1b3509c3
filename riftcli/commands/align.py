"""rift align."""

from __future__ import annotations

import json
import re
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from riftcli.commands.common import AsJson, DataSets, Device, Overrides, Split

if TYPE_CHECKING:
    from riftcli.runs.result_table import ResultTable

OptionalPath = Optional[Path]  # noqa: UP045 - typer reads it at run time


class Kind(StrEnum):
    """How the new model's features become the old one's."""

    orthogonal = "orthogonal"
    lam = "lambda"
    affine = "affine"
    soft = "soft"
    procrustes = "procrustes"
    slerp = "slerp"
    rift = "rift"


def align(
    old: Annotated[
        str, typer.Argument(metavar="OLD", help="Of the old gallery: a run, weights, a name, or pretrained (NEW's start).")
    ],
    new: Annotated[str, typer.Argument(metavar="NEW", help="Of the new queries: a run, a folder of weights, or a name.")],
    kind: Annotated[
        Kind, typer.Option("--map", help="lambda is orthogonal up to a threshold; the last three are not learned here.")
    ] = Kind.lam,
    data: DataSets = [],  # noqa: B006 - typer copies it
    split: Split = "train",
    threshold: Annotated[str, typer.Option("--lambda", help="auto, or a threshold on ||W W^T - I||_F, e.g. 12.")] = "auto",
    weights: Annotated[str, typer.Option(help="Of the losses L_F, L_B and L_C, comma-separated.")] = "1,1,1",
    temperature: Annotated[float, typer.Option(help="Of the contrastive terms.")] = 0.07,
    layers: Annotated[int, typer.Option(help="Of the forward map.")] = 1,
    epochs: Annotated[int, typer.Option(help="Of Adam, over the features.")] = 50,
    batch_size: Annotated[int, typer.Option(help="Of Adam.")] = 256,
    lr: Annotated[float, typer.Option(help="Of Adam.")] = 1e-3,
    seed: Annotated[int, typer.Option(min=0, help="Of the order of the samples.")] = 0,
    overrides: Overrides = [],  # noqa: B006
    device: Device = "auto",
    out: Annotated[OptionalPath, typer.Option(help="Folder; default: NEW/align/<map>, and what else is not as usual.")] = None,
    as_json: AsJson = False,
) -> None:
    """A map between the features of two models, so that one's queries search the other's gallery (see rift retrieval)."""
    from riftcli.api.maps import align_models
    from riftcli.commands import common
    from riftcli.console import note_line
    from riftcli.errors import UsageError
    from riftcli.training.feature_maps import MapOptions

    common.check_out(out)
    options = MapOptions(
        kind.value,
        _number(threshold, "--lambda") if threshold != "auto" else None,
        weights=tuple(_number(part, "--weights") for part in weights.split(",")),  # type: ignore[arg-type]
        temperature=temperature,
        layers=layers,
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        seed=seed,
    )
    models = common.open_pair(old, new, overrides)
    source = common.exactly_one(common.open_sets(data, models, overrides), "--data")
    place = out
    if place is None and models[1].is_run and models[1].folder is not None:
        unusual = [models[0].label if old != "pretrained" else "", source.name if data else "", split if split != "train" else ""]
        place = models[1].folder / "align" / re.sub(r"[^\w.=-]+", "-", "-".join([kind.value, *filter(None, unusual)]))
    if place is None:
        raise UsageError(f"{new} is no run of ours, so the map has no place: give --out DIR")
    table = align_models(models, source, split, options, device, place)
    if table is not None:
        print_align(table)
        note_line(f"map: {place / 'map.safetensors'}")
        if as_json:
            print(json.dumps(table.report(), indent=1))


def _number(text: str, option: str) -> float:
    from riftcli.errors import UsageError

    try:
        return float(text)
    except ValueError:
        raise UsageError(f"{option} {text}: expected numbers") from None


def print_align(table: ResultTable) -> None:
    """How near the mapped features come, on the images of the fit and on others."""
    from riftcli.console import print_grid
    from riftcli.runs.result_table import format_number

    titles = {"cosine_before": "as it is", "cosine": "mapped", "cosine_forward": "forward"}
    lines = [
        [
            f"{row['data']} {row['split']}",
            str(row["n"]),
            *(format_number(row[key]) if row[key] is not None else "" for key in titles),
        ]
        for row in table.rows
    ]
    first = table.rows[0]
    print_grid(f"cosine of {first['model']} to {first['reference']}", ["images", "n", *titles.values()], lines)
