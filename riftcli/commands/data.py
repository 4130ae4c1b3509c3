"""rift data check, rift data shrink. Imports within: `rift --help` has no use for pydantic."""

from __future__ import annotations

import json
import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from riftcli.errors import SHOWN_PROBLEMS, ExitCode, UsageError
from riftcli.files import write_text

app = typer.Typer(help="Look at data before training on it.", no_args_is_help=True)


class Kind(StrEnum):
    """How the images of a copy are written."""

    jpeg = "jpeg"
    png = "png"


OptionalPath = Optional[Path]  # noqa: UP045 - typer reads it at run time
OptionalInt = Optional[int]  # noqa: UP045


@app.callback()
def _data() -> None:
    """Look at data before training on it."""


@app.command("check")
def check(
    recipe: Annotated[str, typer.Option(help="A recipe file, or the name of a shipped one.")],
    overrides: Annotated[
        list[str], typer.Option("--set", metavar="KEY=VALUE", help="Override a value, e.g. data.root=/data/isic2018; repeatable.")
    ] = [],  # noqa: B006 - typer copies it
    near: Annotated[
        int, typer.Option(min=0, max=16, help="Near-duplicates: bits of 64 in which perceptual hashes may differ; 0 is off.")
    ] = 4,
    workers: Annotated[OptionalInt, typer.Option(min=1, help="Processes that decode; default: all cores.")] = None,
    html: Annotated[OptionalPath, typer.Option(help="Also write a page with samples of every class.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Warnings count as errors.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report on stdout.")] = False,
) -> int:
    """Decode every image, count classes, find duplicates, overlap and leakage. Exit code 3 on errors, 0 with warnings."""
    from riftcli import recipe as recipes
    from riftcli.console import Console
    from riftcli.data.audit import check_data

    if html is not None and (html.is_dir() or not os.access(_existing(html.absolute().parent), os.W_OK)):
        raise UsageError(f"--html {html}: not a file that can be written")  # before the work, not after it
    console = Console()
    checked = recipes.load(recipe, overrides)
    audit = check_data(checked.name, checked.data, checked.retention, checked.input, console, near, workers)
    report = audit.report()
    _print_tables(console, report)
    if html is not None:
        from riftcli.report.data_page import write_data_page

        write_data_page(html, audit)
        console.line(f"page: {html}")
    if as_json:
        print(json.dumps(report, indent=1))
    bad = report["errors"] or (strict and report["warnings"])
    return int(ExitCode.DATA if bad else ExitCode.OK)


@app.command("shrink")
def shrink(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The new folder; the same command again goes on where it was.")],
    recipe: Annotated[str, typer.Option(help="A recipe file, or the name of a shipped one.")],
    size: Annotated[int, typer.Option(min=16, help="Pixels of the shorter side; nothing is enlarged.")] = 512,
    kind: Annotated[Kind, typer.Option("--format", help="png loses nothing but the size.")] = Kind.jpeg,
    quality: Annotated[int, typer.Option(min=50, max=100, help="Of JPEG, without chroma subsampling.")] = 95,
    overrides: Annotated[
        list[str], typer.Option("--set", metavar="KEY=VALUE", help="Override a value, e.g. data.root=/data/isic2018; repeatable.")
    ] = [],  # noqa: B006 - typer copies it
    workers: Annotated[OptionalInt, typer.Option(min=1, help="Processes; default: all cores.")] = None,
) -> None:
    """Copy the images of a recipe, smaller: same ids, labels, groups and splits; with a manifest, and readable by any recipe."""
    from riftcli import recipe as recipes
    from riftcli.console import Console
    from riftcli.data.leaks import refuse_leaks
    from riftcli.data.shrink import SECTION, Encoding
    from riftcli.data.shrink import shrink as shrunk
    from riftcli.data.splits import load_splits

    console, checked = Console(), recipes.load(recipe, overrides)
    data = checked.data
    splits = load_splits(data.source, data.train, data.val, data.test, data.rules)
    refuse_leaks(splits.leaks, data.rules.allow_overlap)
    before = sum(path.stat().st_size for split in splits.named().values() for path in split.paths or [])
    section = shrunk(splits, out, Encoding(size, kind.value, quality, checked.input.bit_depth), console, workers)
    for rule in ("allow_overlap", "allow_missing_classes"):
        if getattr(data.rules, rule):
            section[rule] = True
    write_text(out / SECTION, recipes.dump(section))
    after = sum(path.stat().st_size for path in (out / "images").rglob("*") if path.is_file())
    count = sum(len(split) for split in splits.named().values())
    was = f"{before / 1e6:,.1f} MB -> " if before else ""
    console.line(f"shrunk: {count} images, {was}{after / 1e6:,.1f} MB in {out}")
    console.line(f'next: rift finetune --recipe {recipe} --set "data=$(cat {out / SECTION})"')


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    return folder if folder.exists() else _existing(folder.parent)


MANY_CLASSES = 40  # above, the terminal shows the smallest and the largest


def _print_tables(console: Any, report: dict[str, Any]) -> None:
    from rich.markup import escape
    from rich.table import Table

    splits = report["splits"]
    table = Table(title=escape(f"{report['data']} ({report['recipe']})"))
    for column in ("split", "images", "unreadable", "width", "height", "modes", "groups"):
        table.add_column(column, justify="right" if column in ("images", "unreadable") else "left")
    for name, entry in splits.items():
        sides = [_span(entry["sizes"][side]) if entry["sizes"] else "-" for side in ("width", "height")]
        modes = ", ".join(f"{mode} {count}" for mode, count in entry["modes"].items()) or "-"
        groups = ", ".join(f"{count} {column}s" for column, count in entry["groups"].items()) or "-"
        table.add_row(escape(name), str(entry["n"]), str(entry["unreadable"]), *sides, escape(modes), escape(groups))
    if splits:
        console.rich.print(table)
    for data in dict.fromkeys(entry["data"] for entry in splits.values()):
        _print_counts(console, data, {name: entry for name, entry in splits.items() if entry["data"] == data})
    for finding in report["findings"]:
        where = f"{', '.join(finding['splits'])}: " if finding["check"] in _OF_ONE_SPLIT else ""  # the others say where
        for line in finding["message"].splitlines():
            console.line(line if line.startswith("  ") else f"{finding['level']}: {where}{line}", _STYLE[finding["level"]])
        shown = [] if finding["check"] == "labels" else finding["examples"][:SHOWN_PROBLEMS]  # labels: they are the message
        for example in shown:
            console.line(f"  {example}")
        if shown and finding["count"] > len(shown):
            console.line(f"  and {finding['count'] - len(shown)} more (--json lists them)")
    console.line(f"{report['errors']} errors, {report['warnings']} warnings")


def _print_counts(console: Any, data: str, splits: dict[str, Any]) -> None:
    from rich.markup import escape
    from rich.table import Table

    classes = list(dict.fromkeys(label for entry in splits.values() for label in entry["class_counts"]))
    if not classes:
        return
    counts = Table(title=escape(f"{data}: samples per class"))
    counts.add_column("class")
    for name in splits:
        counts.add_column(escape(name), justify="right")
    order = sorted(classes, key=lambda label: -max(entry["class_counts"].get(label, 0) for entry in splits.values()))
    shown = classes if len(classes) <= MANY_CLASSES else [*order[: MANY_CLASSES // 2], *order[-MANY_CLASSES // 2 :]]
    for label in shown:
        counts.add_row(escape(label), *[str(entry["class_counts"].get(label, "-")) for entry in splits.values()])
    console.rich.print(counts)
    if len(shown) < len(classes):
        console.line(f"({len(classes) - len(shown)} classes in between are left out; --json has them all)")


_OF_ONE_SPLIT = ("ignored", "missing", "unreadable", "classes", "modes", "duplicates")
_STYLE = {"error": "bold red", "warning": "bold yellow"}


def _span(entry: dict[str, Any]) -> str:
    if entry["min"] == entry["max"]:
        return str(entry["min"])
    return f"{entry['min']} .. {entry['max']}, median {entry['median']:g}"
