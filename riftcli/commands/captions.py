"""rift captions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from riftcli.commands.common import AsJson, DataSets, Device, Models, Out, Overrides, Pretrained, Runs, Split

if TYPE_CHECKING:
    from riftcli.runs.result_table import ResultTable

SHOWN = {  # key of a row -> title
    "image_to_text_r1": "image to text R@1",
    "image_to_text_r5": "R@5",
    "image_to_text_r10": "R@10",
    "text_to_image_r1": "text to image R@1",
    "text_to_image_r5": "R@5",
    "text_to_image_r10": "R@10",
    "rsa": "RSA",
    "rsa_images": "RSA images",
    "rsa_texts": "RSA texts",
}


def captions(
    run: Runs = [],  # noqa: B006 - typer copies it
    model: Models = [],  # noqa: B006
    data: DataSets = [],  # noqa: B006
    split: Split = "test",
    pretrained: Pretrained = True,
    overrides: Overrides = [],  # noqa: B006
    device: Device = "auto",
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Retrieval between images and their captions, and RSA to the pretrained model over both."""
    from riftcli.commands import common
    from riftcli.evaluation.evaluators.captions import CaptionRetrieval

    common.check_out(out)
    common.measure_beside_pretrained(
        CaptionRetrieval(split), print_captions, run, model, data, overrides, pretrained, device, out, as_json
    )


def print_captions(table: ResultTable) -> None:
    """A table per data set: models down."""
    from riftcli.console import print_grid
    from riftcli.runs.result_table import averaged, format_number

    for name in dict.fromkeys(row["data"] for row in table.rows):
        rows = [row for row in table.rows if row["data"] == name]
        lines = []
        for group in dict.fromkeys(row["group"] for row in rows):
            own = [row for row in rows if row["group"] == group]
            texts = []
            for key in SHOWN:
                cells = averaged([row for row in own if row[key] is not None], ["group"], key)
                cell = next(iter(cells.values()), None)
                texts.append("" if cell is None else format_number(cell[0], cell[1] if cell[2] > 1 else None))
            lines.append([group, *texts])
        print_grid(f"{name}: {rows[0]['n']} images, {rows[0]['captions']} captions", ["model", *SHOWN.values()], lines)
