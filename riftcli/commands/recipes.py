"""rift recipes ls | show | cp | validate | schema. Imports within: `rift --help` has no use for pydantic."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from riftcli.commands.completion import complete_key, complete_recipe
from riftcli.errors import UsageError
from riftcli.files import write_text

app = typer.Typer(help="List, show, copy and check recipes.", no_args_is_help=True)


@app.command("ls")
def ls() -> None:
    """List the shipped recipes and what each is for."""
    from riftcli import recipe as recipes
    from riftcli.recipe import family

    folder = recipes.shipped_folder()
    names = sorted(path.stem for path in folder.glob("*.yaml"))
    width = max(len(name) for name in names)
    for name in names:
        print(f"{name:<{width}}  {_title(recipes.source(name)[0])}")
    for kind in family.FAMILIES:
        print("\nand SET_METHOD for every")
        print(f"  SET     {', '.join(family.sets(folder, kind))}")
        methods = family.methods(folder, kind)
        width = max(len(name) for name in methods)
        for i, name in enumerate(methods):
            title = _title((folder / kind / f"{name}.yaml").read_text(encoding="utf-8"))
            print(f"  {'METHOD' if i == 0 else '':<6}  {name:<{width}}  {title}")


def _title(text: str) -> str:
    return text.partition("\n")[0].removeprefix("#").strip()


@app.command("show")
def show(name: Annotated[str, typer.Argument(autocompletion=complete_recipe)]) -> None:
    """Print a recipe."""
    from riftcli import recipe as recipes

    print(recipes.source(name)[0], end="")


@app.command("cp")
def cp(
    name: Annotated[str, typer.Argument(autocompletion=complete_recipe)],
    path: Annotated[Path, typer.Argument(help="File or folder.")] = Path(),
) -> None:
    """Copy a recipe here, to change it."""
    from riftcli import recipe as recipes

    text, filename = recipes.source(name)
    target = path / filename if path.is_dir() else path
    if target.exists():
        raise UsageError(f"{target}: exists; choose another name or remove it")
    write_text(target, text)
    print(f"copied to {target}", file=sys.stderr)


@app.command("validate")
def validate(
    path: str,
    overrides: Annotated[list[str], typer.Option("--set", metavar="KEY=VALUE")] = [],  # noqa: B006 - typer copies it
) -> None:
    """Check a recipe without running it; every error at once."""
    from riftcli import recipe as recipes

    checked = recipes.load(path, overrides)
    print(f"{checked.name}: ok", file=sys.stderr)


@app.command("explain")
def explain(
    key: Annotated[str, typer.Argument(help="A dotted key, as --set takes it.", autocompletion=complete_key)],
) -> None:
    """Print what a key does, its kind, default and range."""
    from riftcli.recipe.explain import explain as meanings_of

    for meaning in meanings_of(key.removesuffix("=")):  # completion adds it
        owner = f" ({meaning.owner})" if meaning.owner else ""
        default = "no default" if meaning.default is None else f"default {meaning.default}"
        print(f"{meaning.key}{owner}: {', '.join(part for part in (meaning.kind, meaning.limits, default) if part)}")
        if meaning.what:
            print(f"  {meaning.what}")


@app.command("schema")
def schema() -> None:
    """Print the JSON Schema of recipes, for editors."""
    from riftcli.recipe.schema import recipe_schema

    print(json.dumps(recipe_schema(), indent=2))
