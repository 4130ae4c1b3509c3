"""rift predict."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from riftcli.commands.common import AsJson, Device, OptionalPath, Overrides, note_unfinished
from riftcli.files import writing


def predict(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A finished run, or a folder of weights.")],
    paths: Annotated[list[Path], typer.Argument(metavar="PATH...", help="Images, or folders of images.")],
    overrides: Overrides = [],  # noqa: B006 - typer copies it
    device: Device = "auto",
    ensemble: Annotated[
        bool, typer.Option("--ensemble", help="RUN is a folder of --repeats or --folds: the mean of all its runs.")
    ] = False,
    out: Annotated[OptionalPath, typer.Option(help="A CSV file; default: stdout.")] = None,
    as_json: AsJson = False,
) -> None:
    """Classes and probabilities of images, as CSV."""
    from riftcli import dist
    from riftcli.console import Console
    from riftcli.errors import Problems, UsageError
    from riftcli.evaluation.candidates import open_run
    from riftcli.evaluation.encoder import Encoder
    from riftcli.evaluation.ensemble import members_of
    from riftcli.evaluation.predict import predict_run, write_predictions

    if out is not None and (out.is_dir() or not out.absolute().parent.is_dir()):
        raise UsageError(f"--out {out}: not a file that can be written")  # before the work, not after it
    candidates = members_of(run, overrides) if ensemble else [open_run(run, overrides)]
    note_unfinished([candidate.folder if candidate.is_run else None for candidate in candidates])
    encoder = Encoder.of_recipe(candidates[0].recipe, dist.init(device), Console(quiet=not dist.is_main()))
    classes, rows = predict_run(candidates, paths, encoder)
    main = dist.is_main()
    dist.close()
    if not main:
        return
    if out is not None:
        with writing(out) as file:
            write_predictions(file, classes, rows)
        print(f"predictions: {out} ({len(rows)} images)", file=sys.stderr)
    failed = [row["error"] for row in rows if row["error"]]
    if as_json:
        named = [{**row, "probabilities": dict(zip(classes, row["probabilities"], strict=True))} for row in rows]
        print(json.dumps({"schema": "rift.predictions/1", "classes": classes, "rows": named}, indent=1))
    elif out is None:
        write_predictions(sys.stdout, classes, rows)
    if failed:
        print(f"error: {len(failed)} of {len(rows)} images could not be read; the others are done", file=sys.stderr)
        problems = Problems()
        for text in failed:
            problems.add(text)
        problems.raise_if_any()
