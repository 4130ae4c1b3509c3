"""A recipe: YAML and --set overrides in, a frozen and fully checked Recipe out. Reports every error at once; no torch here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from riftcli.assets import ASSETS
from riftcli.errors import UsageError, did_you_mean
from riftcli.recipe import family, strict_yaml
from riftcli.recipe.check import check_recipe
from riftcli.recipe.checker import Checker
from riftcli.recipe.recipe import Recipe
from riftcli.recipe.sections import TOP_LEVEL


def shipped_folder() -> Path:
    """The folder of shipped recipes, in a wheel and in a checkout alike."""
    package = ASSETS.parent
    inside = package / "recipes"
    return inside if inside.is_dir() else package.parent / "recipes"


def shipped_names() -> list[str]:
    """Names of the shipped recipes, without `.yaml`: those that are written out, then the members of families."""
    folder = shipped_folder()
    return [*sorted(path.stem for path in folder.glob("*.yaml")), *family.members(folder)]


def source(name: str) -> tuple[str, str]:
    """(text, file name) of a recipe by path, name, or family; raise UsageError with the nearest name."""
    stem = name.removesuffix(".yaml")
    if not Path(name).expanduser().is_file() and stem in family.members(shipped_folder()):
        return family.compose(shipped_folder(), stem), f"{stem}.yaml"
    path = find(name)
    return read(path), path.name


def find(name: str) -> Path:
    """A path if one exists, else a shipped recipe by name; raise UsageError with the nearest name."""
    try:
        path = Path(name).expanduser()
        if path.is_file():
            return path
    except (OSError, RuntimeError) as error:
        raise UsageError(f"recipe {name[:80]}: not a usable path ({error})") from error
    stem = name.removesuffix(".yaml")
    shipped = shipped_folder() / f"{stem}.yaml"
    if "/" not in name and shipped.is_file():
        return shipped
    raise UsageError(
        f"recipe {name}: no such file and no shipped recipe of that name{did_you_mean(stem, shipped_names())}; "
        "`rift recipes ls` lists the shipped ones"
    )


def load(name: str, overrides: list[str] | None = None) -> Recipe:
    """Find, read and check a recipe; raise UsageError with every error, each with its line."""
    text, filename = source(name)
    return parse(text, filename, overrides or [])


def read(path: Path, what: str = "recipe") -> str:
    """The text of a recipe file; raise UsageError when it is not text. what: it is, for messages."""
    try:
        if path.is_fifo() and not str(path).startswith("/dev/fd/"):  # but <(...) of a shell is a fine way to give one
            raise UsageError(f"{what} {path}: a named pipe, not a file")
        with path.open("rb") as file:
            content = file.read(strict_yaml.MAX_BYTES + 1)
        if len(content) > strict_yaml.MAX_BYTES:
            raise UsageError(f"{what} {path.name}: larger than {strict_yaml.MAX_BYTES // 1000} kB: this is not a {what}")
        return content.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        raise UsageError(f"{what} {path.name}: not a UTF-8 text file (byte {error.start})") from error
    except ValueError as error:
        raise UsageError(f"{what} {path.name}: {error}: this is not a {what}") from error
    except OSError as error:
        raise UsageError(f"{what} {path}: cannot be read ({error.strerror})") from error


def parse(text: str, filename: str, overrides: list[str]) -> Recipe:
    """Check recipe text; `filename` is for messages and the run's name."""
    checker = Checker(text, filename, "recipe", TOP_LEVEL)
    for override in overrides:
        checker.apply(override)
    return check_recipe(checker, text)


# Keys that runs of earlier versions had not, and what those did.
OLDER = {
    "schedule.min_warmup_steps": "0",
    "data.follow_links": "true",
    "input.resize": "pil",
    "train.compile": "false",
    "regularizer.solver": "solve",
    "train.diagnose_every_steps": "1",
}


def stored(path: Path, filename: str | None = None, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of a run folder, which does what the version did that wrote it, and what the overrides say; raise UsageError."""
    text, name = read(path), filename or path.name
    written = parse(text, name, list(overrides)).sources
    older = [f"{key}={value}" for key, value in OLDER.items() if written.get(key) == "default"]
    return parse(text, name, [*older, *overrides])


class _Dumper(yaml.SafeDumper):
    """Quotes every text that our own reader would take for something else ('08', '1e-4', 'no' is safe)."""

    def ignore_aliases(self, data: Any) -> bool:
        """Write shared values out: the reader refuses anchors."""
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    try:
        plain = strict_yaml.parse(text).data == text
    except strict_yaml.YamlError:
        plain = False
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if plain else '"')


_Dumper.add_representer(str, _represent_text)


def flow(value: Any) -> str:
    """A value as YAML on one line."""
    text = yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10**9, default_flow_style=True)
    return text.removesuffix("...\n").rstrip("\n")


def dump(resolved: dict[str, Any]) -> str:
    """Resolved values as YAML that this module reads back."""
    return yaml.dump(resolved, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
