"""rift attention."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from riftcli.commands.common import AsJson, DataSets, Device, Out, Overrides, Runs

if TYPE_CHECKING:
    from riftcli.evaluation.encoder import Encoder
    from riftcli.runs.result_table import Findings


def attention(
    run: Runs = [],  # noqa: B006 - typer copies it
    images: Annotated[
        list[Path], typer.Option("--image", help="An image or a folder of them; repeatable. Default: a sample.")
    ] = [],  # noqa: B006
    count: Annotated[int, typer.Option(min=1, help="Images of the sample.")] = 8,
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
    from riftcli.commands.common import sole
    from riftcli.console import say
    from riftcli.evaluation.evaluators.attention import attention_run, chosen_images, draw, head_rows
    from riftcli.runs.result_table import write_csv

    common.check_out(out)
    subjects = common.open_subjects(run, [], overrides, own_data=not data)
    wished = subjects[:1] if images else subjects  # with images of one's own, the data only says how files are read
    source = sole(common.open_sets(data, wished, overrides), "--data")
    found: dict[str, Any] = {}

    def look(encoder: Encoder) -> Findings:
        chosen = chosen_images(source, split, count, seed, images, encoder)
        findings, found["pictures"] = attention_run(subjects, source, chosen, block, encoder)
        return findings

    for path in common.measure(look, print_attention, subjects, subjects[0].recipe, device, out, as_json):
        pictures, folder = found["pictures"], path.parent
        own = [s for s in subjects if s.folder is not None and folder.is_relative_to(s.folder)] or subjects
        labels = list(dict.fromkeys(label for s in own for label in (pictures["starts"][s.label], s.label)))
        draw(folder / "attention.png", pictures, labels, heads=False)
        say(f"plot: {folder / 'attention.png'}")
        if heads and len(own) == 1:
            draw(folder / "attention_heads.png", pictures, labels, heads=True)
            write_csv(folder / "attention_heads.csv", head_rows(pictures, labels))


def print_attention(findings: Findings) -> None:
    """Models down; the distance of the mean maps, of the single heads' maps, and the cosine, averaged over the images."""
    from riftcli.console import print_grid
    from riftcli.runs.result_table import averaged, shown

    keys = ("js_distance", "js_distance_heads", "cosine")
    cells = {key: averaged(findings.rows, ["group"], key) for key in keys}
    groups = dict.fromkeys(row["group"] for row in findings.rows)
    lines = [[group, *(shown(cells[key][group,][0]) for key in keys)] for group in groups]
    print_grid(f"attention before and after, mean over {findings.settings['images']} images", ["model", *keys], lines)
