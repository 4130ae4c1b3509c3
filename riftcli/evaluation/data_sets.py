"""Which data an evaluation looks at: a run's own, or what --data names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from riftcli import recipe as recipes
from riftcli.console import Console
from riftcli.data.classes import match_classes
from riftcli.data.reading import sift
from riftcli.data.split import Split
from riftcli.data.splits import load_split, load_splits
from riftcli.errors import UsageError
from riftcli.evaluation.candidates import Candidate
from riftcli.recipe import DataSection
from riftcli.recipe.data_sources import SplitSpec
from riftcli.recipe.image_sections import InputSection
from riftcli.recipe.sections import PromptsSection

FOLDER = "imagefolder:"


@dataclass(frozen=True)
class EvalData:
    """A data source with its splits, and how its files are read."""

    data: DataSection
    input: InputSection
    name: str  # for tables and folders
    prompts: PromptsSection | None = None  # its classes in words

    @classmethod
    def of_run(cls, candidate: Candidate) -> EvalData:
        """The data that a run was trained on; raise UsageError for a model that brings none."""
        if not candidate.has_data:
            place = f"--run {candidate.folder}" if candidate.folder else f"--model {candidate.label}"
            raise UsageError(
                f"{place}: a model folder without its run; say what to evaluate on, e.g. --set data.format=image_folder"
            )
        recipe = candidate.recipe
        return cls(recipe.data, recipe.input, recipe.data.name, recipe.prompts)


def distinct_sets(sets: Sequence[EvalData]) -> list[EvalData]:
    """Two data sets of one name get numbers: their samples and results are kept apart."""
    names = [source.name for source in sets]
    return [
        source if names.count(source.name) == 1 else replace(source, name=f"{source.name}-{names[:i].count(source.name)}")
        for i, source in enumerate(sets)
    ]


def open_data(spec: str, overrides: list[str]) -> EvalData:
    """`imagefolder:PATH` (with train/ and test/ inside), a recipe, or RECIPE:ROOT for its data.root; raise UsageError."""
    chosen = [override for override in overrides if override.startswith(("data.", "input."))]
    if spec.startswith(FOLDER):
        root = Path(spec.removeprefix(FOLDER)).expanduser()
        text = f'model: {{name: none}}\ndata: {{format: image_folder, root: "{root}", train: train, test: test}}\n'
        recipe = recipes.parse(text, f"--data {spec}", chosen)
    else:
        name, colon, root_text = spec.partition(":")
        if colon and not Path(spec).expanduser().is_file():
            chosen = [*chosen, f"data.root={root_text}"]
        else:
            name = spec
        recipe = recipes.load(name, chosen)
    return EvalData(recipe.data, recipe.input, recipe.data.name, recipe.prompts)


def list_split(source: EvalData, name: str) -> Split:
    """train, val and test are the recipe's; any other name is asked of the data source. Unreadable images are still in it.

    `test` of a recipe without a test split is its validation split, which is named so.
    """
    data = source.data
    if name == "test" and data.test is not None and not data.test.held_out:
        return load_split(data.source, data.test)
    if name in ("train", "val", "test"):
        splits = load_splits(data.source, data.train, data.val, data.test, data.rules)
        split = {"train": splits.train, "val": splits.val, "test": splits.reported}[name]
        if split is None:
            raise UsageError("--split val: the recipe has no validation split (data.val)")
        return split
    return load_split(data.source, SplitSpec(name))


def matched_split(source: EvalData, name: str, classes: list[str], console: Console) -> tuple[Split, list[str]]:
    """(a split with these classes and without unreadable images, the ids of those); classes: of a model, empty for any."""
    whole = list_split(source, name)
    split = match_classes(whole, classes or whole.classes, source.data.rules.allow_missing_classes)
    return sift(split, source.input, console)
