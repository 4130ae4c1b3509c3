"""rift runs, rift runs rm."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from riftcli.commands.completion import complete_run
from riftcli.errors import UsageError

app = typer.Typer(help="List runs, and free the disk of them.", invoke_without_command=True)


@app.callback()
def _runs(
    context: typer.Context,
    folder: Annotated[Path, typer.Option("--in", help="The folder that the runs are below.")] = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="Print the list on stdout.")] = False,
) -> None:
    """List runs: date, recipe, status, accuracy (or mAP), CKA and size. `rm` frees the disk."""
    if context.invoked_subcommand is not None:
        return
    from riftcli.console import print_grid
    from riftcli.runs.listing import runs_below

    entries = runs_below(folder)
    if as_json:
        print(json.dumps([{**vars(entry), "path": str(entry.path)} for entry in entries], indent=1))
        return
    lines = [
        [
            str(entry.path.relative_to(folder)) if entry.path != folder else str(folder),
            entry.created.replace("T", " ").removesuffix("Z"),
            entry.recipe,
            entry.status,
            "" if entry.score is None else f"{entry.score:.4f}",
            "" if entry.cka is None else f"{entry.cka:.4f}",
            f"{entry.size / 1e6:,.0f} MB",
        ]
        for entry in entries
    ]
    total = sum(entry.size for entry in entries) / 1e9
    header = ["run", "begun (UTC)", "recipe", "status", "accuracy or mAP", "CKA", "size"]
    print_grid(f"{len(entries)} runs below {folder}, {total:,.2f} GB", header, lines)


@app.command("rm")
def remove(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders.", autocompletion=complete_run)],
    keep_best: Annotated[
        bool, typer.Option("--keep-best", help="Only what is needed to resume (last/): best weights and reports stay.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Delete runs, or with --keep-best only what a finished run would need to resume."""
    import sys

    from riftcli.console import note_line
    from riftcli.runs.listing import check_removable, remove_run

    runs = list(dict.fromkeys(runs))
    for run in runs:  # all of them before the first is gone
        check_removable(run, keep_best)
    if not keep_best and not yes:
        if not sys.stdin.isatty():
            raise UsageError("runs rm deletes whole runs: say --yes, or --keep-best to keep their best weights and reports")
        typer.confirm(f"Delete {len(runs)} runs and everything in them?", abort=True, err=True)
    freed = 0
    for run in runs:
        size = remove_run(run, keep_best)
        freed += size
        note_line(f"{run}: {'last/ removed' if keep_best else 'removed'}, {size / 1e6:,.0f} MB")
    note_line(f"freed: {freed / 1e6:,.0f} MB")
