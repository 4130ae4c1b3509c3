"""rift cache ls, rift cache clear."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from riftcli.errors import EnvironmentError, StorageError

if TYPE_CHECKING:
    from riftcli.evaluation.cache_folder import Entry

app = typer.Typer(help="The features that are kept between commands: list them, delete them.", no_args_is_help=True)


def _folder() -> Path:
    from riftcli.evaluation.cache_folder import user_folder

    folder = user_folder()
    if folder is None:
        raise EnvironmentError("there is no home folder, so nothing is kept; set RIFTCLI_CACHE to a folder of yours")
    return folder


def _entries(folder: Path) -> list[Entry]:
    from riftcli.evaluation.cache_folder import entries

    try:
        return entries(folder)
    except OSError as error:
        raise StorageError(f"{folder}: cannot be read ({error.strerror}); RIFTCLI_CACHE names another folder") from error


@app.command("ls")
def listing(as_json: Annotated[bool, typer.Option("--json", help="Print the list on stdout.")] = False) -> None:
    """List the kept features: what was not used for longest goes first when the cache is full."""
    from riftcli.console import print_grid
    from riftcli.evaluation.cache_folder import MOST

    folder = _folder()
    found = _entries(folder)
    if as_json:
        print(json.dumps([{**vars(entry), "path": str(entry.path)} for entry in found], indent=1))
        return
    lines = [
        [
            entry.path.stem[:12],
            datetime.fromtimestamp(entry.used, UTC).strftime("%Y-%m-%d %H:%M:%S"),
            f"{entry.size / 1e6:,.1f} MB",
        ]
        for entry in found
    ]
    total = sum(entry.size for entry in found) / 1e9
    print_grid(
        f"{len(found)} tables of features in {folder}, {total:,.2f} of {MOST / 1e9:,.0f} GB",
        ["table", "used (UTC)", "size"],
        lines,
    )


@app.command("clear")
def clear() -> None:
    """Delete the kept features; they are computed again when they are needed."""
    from riftcli.console import note_line
    from riftcli.evaluation.cache_folder import remove

    folder = _folder()
    found = _entries(folder)
    try:
        for entry in found:
            remove(entry)
    except OSError as error:
        raise StorageError(f"{error.filename}: cannot be deleted ({error.strerror})") from error
    note_line(f"freed: {sum(entry.size for entry in found) / 1e6:,.0f} MB ({len(found)} tables in {folder})")
