"""The texts that training reads: prompts of the task's classes, captions of the reference set; numbered, and as tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from riftcli.console import Console
from riftcli.data.batches import sample_seed
from riftcli.data.split import Split
from riftcli.errors import DataError, UsageError
from riftcli.models.image_text import TextFormat, text_tower
from riftcli.recipe import Recipe
from riftcli.recipe.prompts import class_texts

WATCHED = 100_000  # texts that are looked at for their length


@dataclass(frozen=True)
class Texts:
    """Texts by number; sample i of a stream has `count[i]` of them from `first[i]` on."""

    lines: list[str]
    first: torch.Tensor  # (N,)
    count: torch.Tensor  # (N,)
    format: TextFormat
    _known: dict[int, torch.Tensor]

    @classmethod
    def of_classes(cls, texts: Sequence[Sequence[str]], targets: torch.Tensor, text_format: TextFormat) -> Texts:
        """Prompts: every sample of a class has all of its class; texts: of each class, equally many."""
        each = len(texts[0])
        return cls([t for own in texts for t in own], targets * each, torch.full_like(targets, each), text_format, {})

    @classmethod
    def of_captions(cls, split: Split, text_format: TextFormat) -> Texts:
        """Captions, each sample with its own; raise DataError for a set without any."""
        if split.captions is None:
            raise DataError(
                f"reference, split '{split.name}': images without captions, and the regularizer reads texts; use format captions"
            )
        count = torch.tensor([len(own) for own in split.captions])
        first = count.cumsum(0) - count
        return cls([t for own in split.captions for t in own], first, count, text_format, {})

    def tokens(self, numbers: torch.Tensor) -> torch.Tensor:
        """(n,) -> (n, length); each text is cut into tokens once."""
        wanted = numbers.tolist()
        fresh = [number for number in dict.fromkeys(wanted) if number not in self._known]
        if fresh:
            rows = self.format.tokenize([self.lines[number] for number in fresh])
            self._known.update(zip(fresh, rows.int(), strict=True))
        return torch.stack([self._known[number] for number in wanted]).long()


def task_texts(recipe: Recipe, classes: Sequence[str]) -> list[list[str]]:
    """The prompts of the task's classes, as `prompts` says."""
    return class_texts(classes, recipe.wording.templates, recipe.wording.class_names, "prompts")


def build_texts(recipe: Recipe, vit: Any, train: Split, reference: Split | None, console: Console) -> dict[str, Texts]:
    """stream -> its texts, for the streams whose texts something reads; `classes` for an objective that reads one of every
    class. Raises UsageError for a network without a text tower.
    """
    if not recipe.reads_texts:
        return {}
    tower = text_tower(vit)
    if tower is None:
        reader = "objective" if getattr(recipe.objective, "texts", None) else "regularizer"
        raise UsageError(
            f"{reader}.name {recipe.component_name(reader)}: reads texts, and model.name {recipe.model.name} has no text tower; "
            "use a model with two towers, e.g. open_clip:ViT-B-16/laion400m_e32, and model.feature pooled"
        )
    found: dict[str, Texts] = {}
    wanted, regularizer = getattr(recipe.objective, "texts", None), recipe.regularizer
    if wanted is not None:
        own = Texts.of_classes(task_texts(recipe, train.classes), torch.from_numpy(train.targets), tower.format)
        found["task" if wanted == "sample" else "classes"] = own
    if getattr(regularizer, "texts", None) and regularizer.on == "reference":
        assert reference is not None
        found["reference"] = Texts.of_captions(reference, tower.format)
    for name, texts in found.items():
        _count_long(name, texts, console)
    return found


def _count_long(name: str, texts: Texts, console: Console) -> None:
    some = texts.lines[:WATCHED]
    longer = sum(texts.format.too_long(some[i : i + 1000]) for i in range(0, len(some), 1000))
    if longer:
        what = "captions of the reference set" if name == "reference" else "prompts"
        console.warn(
            f"{longer} of {len(some)} {what} are longer than the {texts.format.context_length} tokens of the text tower and are "
            "cut"
        )


def class_draws(texts: Texts, classes: int, seed: int, step: int) -> torch.Tensor:
    """One text of every class for a step, by number; (C,). The same on every rank."""
    each = len(texts.lines) // classes
    return torch.tensor([c * each + sample_seed(seed, step, f"class {c}") % each for c in range(classes)])
