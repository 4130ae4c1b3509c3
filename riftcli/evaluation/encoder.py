"""Splits through models, for the evaluation commands: which data, read how, and not twice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from riftcli import dist
from riftcli import recipe as recipes
from riftcli.console import Console
from riftcli.data import reading as inputs
from riftcli.data.split import Split
from riftcli.data.splits import load_split, load_splits
from riftcli.data.transforms import Preprocessing
from riftcli.errors import UsageError
from riftcli.evaluation import scores as evaluate
from riftcli.evaluation.candidates import Loaded, Subject
from riftcli.evaluation.feature_cache import FeatureCache
from riftcli.evaluation.features import Table
from riftcli.recipe import Data, Recipe
from riftcli.recipe.sections import InputSection

FOLDER = "imagefolder:"


@dataclass(frozen=True)
class DataSet:
    """A data source with its splits, and how its files are read."""

    data: Data
    input: InputSection
    name: str  # for tables and folders

    @classmethod
    def of_run(cls, subject: Subject) -> DataSet:
        """The data that a run was trained on; raise UsageError for a model that brings none."""
        if not subject.has_data:
            place = f"--run {subject.folder}" if subject.folder else f"--model {subject.label}"
            raise UsageError(
                f"{place}: a model folder without its run; say what to evaluate on, e.g. --set data.format=image_folder"
            )
        return cls(subject.recipe.data, subject.recipe.input, subject.recipe.data.name)


def distinct_sets(sets: Sequence[DataSet]) -> list[DataSet]:
    """Two data sets of one name get numbers: their samples and results are kept apart."""
    names = [source.name for source in sets]
    return [
        source if names.count(source.name) == 1 else replace(source, name=f"{source.name}-{names[:i].count(source.name)}")
        for i, source in enumerate(sets)
    ]


def open_data(wish: str, overrides: list[str]) -> DataSet:
    """`imagefolder:PATH` (with train/ and test/ inside), a recipe, or RECIPE:ROOT for its data.root; raise UsageError."""
    chosen = [override for override in overrides if override.startswith(("data.", "input."))]
    if wish.startswith(FOLDER):
        root = Path(wish.removeprefix(FOLDER)).expanduser()
        text = f'model: {{name: none}}\ndata: {{format: image_folder, root: "{root}", train: train, test: test}}\n'
        recipe = recipes.parse(text, f"--data {wish}", chosen)
    else:
        name, colon, root_text = wish.partition(":")
        if colon and not Path(wish).expanduser().is_file():
            chosen = [*chosen, f"data.root={root_text}"]
        else:
            name = wish
        recipe = recipes.load(name, chosen)
    return DataSet(recipe.data, recipe.input, recipe.data.name)


def list_split(source: DataSet, name: str) -> Split:
    """train, val and test are the recipe's; any other name is asked of the data source. Unreadable images are still in it."""
    data = source.data
    if name == "test":
        return load_split(data.source, data.test)
    if name in ("train", "val"):
        splits = load_splits(data.source, data.train, data.val, data.test, data.rules)
        split = splits.train if name == "train" else splits.val
        if split is None:
            raise UsageError("--split val: the recipe has no validation split (data.val)")
        return split
    return load_split(data.source, replace(data.test, name=name, limit=None))


class Encoder:
    """Features and logits of splits; with a cache, those that were computed before are read instead."""

    def __init__(self, device: torch.device, batch_size: int, workers: int, cache: str | None, console: Console) -> None:
        self.device, self.batch_size, self.workers, self.console = device, batch_size, workers, console
        self.cache = FeatureCache(cache) if cache else None

    @classmethod
    def of_recipe(cls, recipe: Recipe, device: torch.device, console: Console) -> Encoder:
        """With the batch size, data workers and cache that a recipe names."""
        return cls(device, recipe.eval.batch_size, recipe.train.workers, recipe.eval.cache, console)

    def table(self, model: Any, preprocessing: Preprocessing, split: Split, reading: InputSection, what: str) -> Table:
        """The split (whose pixels are read already as `reading` says) through a Classifier; collective, same on every rank."""

        def compute() -> Table:
            with self.console.progress(f"encoding {what}", len(split)) as bar:
                return evaluate.encode_split(model, split, preprocessing, self.device, self.batch_size, self.workers, bar.advance)

        if self.cache is None:
            return compute()
        path, found = None, None
        if dist.is_main():
            keys = {"bit_depth", "draft", "cache", "cache_short_side"}
            how = {**reading.model_dump(include=keys), "batch_size": self.batch_size, "device": self.device.type}
            path = self.cache.path(model, getattr(model.vit, "global_pool", None), split, preprocessing, how)
            found = self.cache.read(path, len(split))
        found = dist.broadcast_object(found)
        if found is not None:
            return found
        table = compute()
        if path is not None:
            self.cache.write(path, table)
        return table

    def encode(self, loaded: Loaded, split: Split, reading: InputSection, what: str) -> Table:
        """A sifted split through a loaded model, with that model's own transform."""
        split = inputs.with_pixels(split, reading, loaded.preprocessing, self.console)
        return self.table(loaded.classifier, loaded.preprocessing, split, reading, what)


def sole(values: list[Any], what: str) -> Any:
    """The one value; raise UsageError when a command that looks at one model or data set is given several."""
    if len(values) != 1:
        raise UsageError(f"{what}: give exactly one, not {len(values)}")
    return values[0]
