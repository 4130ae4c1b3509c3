"""rift init."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from riftcli.errors import DataError, UsageError
from riftcli.files import write_text

if TYPE_CHECKING:
    from riftcli.data.discovery import Discovery
    from riftcli.data.splits import Splits

OptionalPath = Optional[Path]  # noqa: UP045 - typer reads it at run time
SHOWN = 3  # lines on what was found; the recipe has them all
MODEL = "vit_small_patch14_dinov2.lvd142m"  # small enough for a CPU, and what most papers here start from


def init(
    data: Annotated[Path, typer.Argument(metavar="FOLDER|TABLE", help="Class folders, DICOM, or a CSV with images beside it.")],
    model: Annotated[str, typer.Option(help="Any model.name, e.g. a timm model.")] = MODEL,
    method: Annotated[str, typer.Option(help="rift, full, linear, rsc, lora, lora_rift, vpt, ...")] = "rift",
    label: Annotated[str, typer.Option(help="The column that holds the labels, of a table.")] = "",
    out: Annotated[OptionalPath, typer.Option(help="The recipe to write; default: NAME.yaml here.")] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Ask nothing: take what is likeliest.")] = False,
) -> None:
    """Look at data, say what is there, and write a recipe that trains on it."""
    from riftcli.console import note_line
    from riftcli.data.discover import discover

    place = data.expanduser()
    name = re.sub(r"[^\w.-]+", "_", place.resolve().stem) or "data"
    target = out or Path(f"{name}.yaml")
    if target.exists():
        raise UsageError(f"{target}: exists; choose another --out or remove it")
    answers = {"label_column": label} if label else {}
    found = discover(place, answers)
    if found.questions and not yes and sys.stdin.isatty():
        asked = {question.key: _ask(question) for question in found.questions}
        found = discover(place, answers | asked)
    text, splits, problem = _draft(found, name, place, model, method)
    from riftcli import recipe as recipes

    checked = recipes.parse(text, target.name, [])
    write_text(target, text)
    for line in _lines(found, splits, SHOWN):
        note_line(line)
    more = f"; {len(found.facts) - SHOWN} more lines on the data at its top" if len(found.facts) > SHOWN else ""
    note_line(
        f"recipe: {target} ({checked.component_name('adapter')} + {checked.component_name('regularizer')} on {model}){more}"
    )
    if problem is not None:
        raise problem
    note_line(f"next: rift finetune --recipe {target}")


def _ask(question: Any) -> str:
    choices = [question.chosen, *question.others]
    for i, choice in enumerate(choices):
        typer.echo(f"  {i + 1}  {choice}", err=True)
    what = question.key.replace("_", " ")
    while True:
        number = typer.prompt(f"Which is the {what}?", default=1, type=int, err=True)
        if 1 <= number <= len(choices):
            return choices[number - 1]


def _draft(found: Discovery, name: str, place: Path, model: str, method: str) -> tuple[str, Splits | None, DataError | None]:
    """(the recipe's text, its splits as training will see them, what is wrong with them)."""
    from riftcli.data.classes import class_counts
    from riftcli.data.leaks import refuse_leaks
    from riftcli.data.splits import load_splits
    from riftcli.recipe.draft import Size, draft

    section = {"format": found.format, **found.fields, **found.splits}
    several = _objective(section)["name"] == "bce"
    size, splits, problem = Size(1000, 2, 1.0, several, _gpu()), None, None
    try:
        data = _parsed(section)
        splits = load_splits(data.source, data.train, data.val, data.test, data.rules)
        refuse_leaks(splits.leaks, data.rules.allow_overlap)
        counts = [count for count in class_counts(splits.train).values() if count]
        size = Size(len(splits.train), len(counts), max(counts) / min(counts), splits.train.task == "multilabel", size.gpu)
    except DataError as error:
        problem = error
    title = f"{name}: {place.name}, as `rift init` found it."
    return draft(name, title, _lines(found, splits, len(found.facts)), section, size, model, method), splits, problem


def _parsed(section: dict[str, Any]) -> Any:
    from riftcli import recipe as recipes

    text = recipes.dump({"model": {"name": "none"}, "objective": _objective(section), "data": section})
    return recipes.parse(text, "draft", []).data


def _objective(section: dict[str, Any]) -> dict[str, str]:
    multilabel = section.get("task") == "multilabel" or section.get("format") == "medfm" and section.get("task") != "colon"
    return {"name": "bce" if multilabel else "cross_entropy"}


def _lines(found: Discovery, splits: Splits | None, count: int) -> list[str]:
    """The first `count` lines on what was found, and two on the images and classes."""
    lines = [" ".join(fact.split()) for fact in found.facts[:count]]
    if splits is not None:
        sizes = ", ".join(f"{len(split)} {name}" for name, split in splits.named().items())
        cut_parts = [name for name, spec in found.splits.items() if isinstance(spec, dict)]
        whole = f", whole {found.groups[0]}s" if cut_parts and found.groups else ""
        how = f" ({' and '.join(cut_parts)} cut from the training images{whole})" if cut_parts else ""
        lines.append(f"images: {sizes}{how}")
        named = ", ".join(splits.train.classes[:8]) + ", ..." * (len(splits.train.classes) > 8)
        lines.append(f"{len(splits.train.classes)} {'labels' if splits.train.task == 'multilabel' else 'classes'}: {named}")
    return lines


def _gpu() -> bool:
    import torch

    return torch.cuda.is_available()
