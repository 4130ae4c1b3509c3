"""Splits through models, for the evaluation commands: which data, read how, and not twice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from riftcli import dist
from riftcli.console import Console
from riftcli.data.loader import KeptBatches, Workers
from riftcli.data.reading import with_pixels
from riftcli.data.split import Split
from riftcli.data.transforms import Preprocessing
from riftcli.errors import ModelError
from riftcli.evaluation import features
from riftcli.evaluation.candidates import LoadedModel
from riftcli.evaluation.feature_cache import FeatureCache
from riftcli.evaluation.features import FeatureTable, View
from riftcli.models.image_text import TextTower, encode_texts
from riftcli.models.sharding import is_sharded
from riftcli.recipe import Recipe
from riftcli.recipe.image_sections import InputSection


class Encoder:
    """Features and logits of splits; with a cache, those that were computed before are read instead."""

    def __init__(
        self,
        device: torch.device,
        batch_size: int,
        workers: Workers,
        cache: str | None,
        console: Console,
        kept: KeptBatches | None = None,
        precision: str = "fp32",
    ) -> None:
        self.device, self.batch_size, self.workers, self.console = device, batch_size, workers, console
        self.cache = FeatureCache.of_setting(cache) if dist.is_main() else None
        self._keeps = cache is not None  # the same on every rank, where a home folder need not be
        self.kept, self.precision = kept, precision

    @classmethod
    def of_recipe(cls, recipe: Recipe, device: torch.device, console: Console) -> Encoder:
        """With the batch size, data workers and cache that a recipe names."""
        own = recipe.eval
        return cls(device, own.batch_size, recipe.train.workers, own.cache, console, precision=own.precision)

    def table(
        self,
        model: Any,
        preprocessing: Preprocessing,
        split: Split,
        reading: InputSection,
        what: str,
        view: View | None = None,
    ) -> FeatureTable:
        """The split (whose pixels are read already as `reading` says) through a Classifier; collective, same on every rank.

        view: an augmentation of the training images instead of the evaluation transform.
        """
        size, workers, precision = self.batch_size, self.workers, self.precision

        def compute() -> FeatureTable:
            with self.console.progress(f"encoding {what}", len(split)) as bar:
                return features.encode_split(
                    model, split, preprocessing, self.device, size, workers, bar.advance, view, self.kept, precision
                )

        if not self._keeps or is_sharded(model):  # of which no rank has the weights that a key names
            return compute()
        path = None
        if self.cache is not None:
            keys = {"bit_depth", "draft", "cache", "cache_short_side"}
            how = {**reading.model_dump(include=keys), "batch_size": self.batch_size, "device": self.device.type}
            how |= {"precision": self.precision}
            if view is not None:
                how |= {"augment": view.settings, "seed": view.seed, "view": view.number}
            path = self.cache.path(model, getattr(model.vit, "global_pool", None), split, preprocessing, how)
        return self._kept(path, len(split), compute)

    def texts(self, tower: TextTower, lines: Sequence[str], what: str) -> torch.Tensor:
        """Unit-length embeddings (n, E) of texts, on the CPU; collective, same on every rank."""

        def compute() -> FeatureTable:
            rows = []
            with self.console.progress(f"encoding {what}", len(lines)) as bar:
                for start in range(0, len(lines), self.batch_size):
                    some = lines[start : start + self.batch_size]
                    rows.append(encode_texts(tower, some, self.device).cpu())
                    bar.advance(len(some))
            table = torch.cat(rows)
            return FeatureTable(table, table[:, :0])

        if not self._keeps:
            return compute().features
        path = None if self.cache is None else self.cache.path_of_texts(tower, lines, self.device.type)
        return self._kept(path, len(lines), compute).features

    def _kept(self, path: Path | None, count: int, compute: Callable[[], FeatureTable]) -> FeatureTable:
        """The table of the cache, else computed and put there; path: on the rank that reads and writes."""
        kept = None if path is None or self.cache is None else self.cache.read(path, count)
        found = dist.broadcast_tables(None if kept is None else [kept.features, kept.logits])
        if found is not None:
            return FeatureTable(*found)
        table = compute()
        if path is not None and self.cache is not None:
            self.cache.write(path, table)
        return table

    def encode(self, loaded: LoadedModel, split: Split, reading: InputSection, what: str) -> FeatureTable:
        """A sifted split through a loaded model, with that model's own transform."""
        split = with_pixels(split, reading, loaded.preprocessing, self.console)
        table = self.table(loaded.classifier, loaded.preprocessing, split, reading, what)
        bad = (~(table.features.isfinite().all(1) & table.logits.isfinite().all(1))).nonzero().flatten().tolist()
        if bad:
            raise ModelError(
                f"{loaded.label}: its features of {len(bad)} of {len(split)} images are not finite, e.g. of {split.ids[bad[0]]}; "
                "its weights are too large for single precision: take other weights, or train it again with a lower optim.lr"
            )
        return table
