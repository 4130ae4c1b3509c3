"""rift push."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from riftcli.commands.completion import complete_run


def push(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="A finished run, or a folder of weights.", autocompletion=complete_run)
    ],
    repo: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="The repository on the hub; made where there is none.")],
    licence: Annotated[str, typer.Option("--license", help="As hubs name it: apache-2.0, cc-by-nc-4.0, other, ...")],
    public: Annotated[bool, typer.Option("--public", help="A new repository that everybody sees; else only its owner.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Send a finished model and its card to a hub, for timm or open_clip to load: safetensors only, never without the word."""
    import sys

    from riftcli.commands.common import note_unfinished
    from riftcli.console import note_line
    from riftcli.errors import UsageError
    from riftcli.evaluation.candidates import open_run
    from riftcli.models.hub import files_of, push_folder, with_licence

    candidate = open_run(run, [])
    folder = candidate.folder / "model" if candidate.is_run and candidate.folder is not None else run
    note_unfinished([candidate.folder if candidate.is_run else None])
    with_licence("", licence)
    files = files_of(folder)
    size = sum(path.stat().st_size for path in files) / 1e6
    what = f"{', '.join(path.name for path in files)} ({size:,.1f} MB) of {folder}"
    if not yes:
        if not sys.stdin.isatty():
            raise UsageError(f"push sends {what} to {repo}: say --yes")
        typer.confirm(f"Send {what} to {repo}{', for everybody to see' if public else ''}?", abort=True, err=True)
    address = push_folder(folder, repo, licence, private=not public)
    note_line(f"pushed: {address}; load it with model.name hf-hub:{repo}")
