"""rift attention."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from riftcli.commands.common import AsJson, DataSets, Device, Out, Overrides, Runs


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
    from riftcli import dist
    from riftcli.attention_run import attention_run, chosen_images, draw
    from riftcli.commands import common
    from riftcli.console import Console
    from riftcli.encoding import Encoder, sole
    from riftcli.report.table import averaged, print_grid, say, shown

    common.check_out(out)
    subjects = common.open_subjects(run, [], overrides, own_data=not data)
    wished = subjects[:1] if images else subjects  # with images of one's own, the data only says how files are read
    source = sole(common.open_sets(data, wished, overrides), "--data")
    encoder = Encoder.of_recipe(subjects[0].recipe, dist.init(device), Console(quiet=not dist.is_main()))
    chosen = chosen_images(source, split, count, seed, images, encoder)
    findings, pictures = attention_run(subjects, source, chosen, block, encoder)
    main = dist.is_main()
    dist.close()
    if not main:
        return
    keys = ("js_distance", "js_distance_heads", "cosine")
    cells = {key: averaged(findings.rows, ["group"], key) for key in keys}
    lines = [
        [group, *(shown(cells[key][group,][0]) for key in keys)] for group in dict.fromkeys(r["group"] for r in findings.rows)
    ]
    print_grid(f"attention before and after, mean over {len(chosen)} images", ["model", *keys], lines)
    for path in common.finish(findings, subjects, out, as_json):
        folder = path.parent
        own = [s for s in subjects if s.folder is not None and folder.is_relative_to(s.folder)] or subjects
        labels = list(dict.fromkeys(label for s in own for label in (pictures["starts"][s.label], s.label)))
        draw(folder / "attention.png", pictures, labels, heads=False)
        say(f"plot: {folder / 'attention.png'}")
        if heads and len(own) == 1:
            draw(folder / "attention_heads.png", pictures, labels, heads=True)
