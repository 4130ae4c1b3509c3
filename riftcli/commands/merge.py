"""rift merge."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Optional

import typer

OptionalPath = Optional[Path]  # noqa: UP045 - typer reads it at run time


def merge(
    source: Annotated[Path, typer.Argument(metavar="RUN", help="A run with an adapter, or an adapter folder in peft's format.")],
    out: Annotated[OptionalPath, typer.Option(help="Folder for the merged model; default: RUN/merged.")] = None,
    model: Annotated[str, typer.Option(help="Base model of an adapter folder that has no run.")] = "",
) -> None:
    """Fold an adapter into its base model: a plain timm folder without a trace of the adapter."""
    from riftcli.models.merge import merge_run

    print(f"merged: {merge_run(source, out, model or None)}", file=sys.stderr)
