"""rift export."""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from riftcli.commands.common import OptionalPath
from riftcli.commands.completion import complete_run
from riftcli.errors import UsageError


class Format(StrEnum):
    """What other run times read."""

    onnx = "onnx"
    torch_export = "torch_export"


def export(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="A finished run, or a folder of weights.", autocompletion=complete_run)
    ],
    kind: Annotated[Format, typer.Option("--format", help="onnx (extra onnx), or torch_export for torch alone.")] = Format.onnx,
    out: Annotated[OptionalPath, typer.Option(help="The file to write; default: RUN/model.onnx or RUN/model.pt2.")] = None,
    preprocess: Annotated[
        bool, typer.Option("--preprocess", help="Take the uint8 pixels of resized, cropped images, and standardise them inside.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file.")] = False,
) -> None:
    """Write a finished model for onnxruntime or torch.export, for batches of any size; compared with ours before it is kept."""
    from dataclasses import asdict

    import torch

    from riftcli.commands import common
    from riftcli.console import note_line
    from riftcli.evaluation.candidates import open_run
    from riftcli.models.export import SUFFIXES, export_model

    candidate = open_run(run, [])
    place = candidate.folder if candidate.folder is not None else run
    target = out or place / f"model{SUFFIXES[kind.value]}"
    if target.is_dir() or not os.access(target.absolute().parent, os.W_OK):
        raise UsageError(f"--out {target}: not a file that can be written; name another with --out")
    common.note_unfinished([candidate.folder if candidate.is_run else None])
    if target.exists() and not overwrite:
        raise UsageError(f"{target}: exists; replace it with --overwrite, or choose another --out")
    loaded = candidate.load(torch.device("cpu"))
    shown = loaded.preprocessing
    about = {
        "classes": loaded.classes,
        "task": loaded.task,
        "input": "uint8 pixels (n, 3, S, S)" if preprocess else "standardised float32 (n, 3, S, S): (pixels / 255 - mean) / std",
        "preprocessing": asdict(shown),
        "resize": shown.resizing,
        "architecture": candidate.recipe.model.name,
    }
    worst = export_model(loaded.classifier, shown, about, target, kind.value, preprocess)
    size = target.stat().st_size / 1e6
    note_line(
        f"exported: {target}, {size:,.1f} MB; logits and features differ from ours by {worst:.1e} of the largest at most, "
        "at batches of 1 and 3"
    )
