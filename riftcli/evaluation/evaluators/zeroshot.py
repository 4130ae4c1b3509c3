"""Classes told by their names: what `rift zeroshot` does (Radford et al. 2021; DiVE paper Table 3)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from riftcli import dist
from riftcli.console import Stopwatch
from riftcli.data.reading import sift
from riftcli.errors import UsageError
from riftcli.evaluation.candidates import Candidate
from riftcli.evaluation.data_sets import EvalData, list_split
from riftcli.evaluation.encoder import Encoder
from riftcli.evaluation.evaluate import check_metrics
from riftcli.evaluation.zero_shot import scored, zero_shot_weights
from riftcli.models.image_text import text_tower
from riftcli.recipe.prompts import check_templates, class_texts
from riftcli.runs.provenance import environment
from riftcli.runs.result_table import Column, ResultTable, Row


@dataclass(frozen=True)
class ZeroShot:
    """Accuracy on classes that a model was only told the names of, by its text tower.

    metrics: of the catalog, those that need no pretrained features. templates: a shipped set (openai80, flowers, ...) or
    templates with {} for the class; null takes the recipe's `prompts`, else openai80. class_names: a shipped set or a file with
    a name a line; null takes the recipe's, else the data's own. split: test, val, train or any of the source.
    """

    metrics: tuple[str, ...] = ("acc", "f1", "ece")
    templates: tuple[str, ...] = ()
    class_names: str | None = None
    split: str = "test"

    def __post_init__(self) -> None:
        check_metrics(self.metrics)
        try:
            check_templates(self._templates or "openai80")
        except ValueError as error:
            raise UsageError(f"--templates: {error}") from error

    @property
    def _templates(self) -> str | list[str] | None:
        """One word without a place for the class names a set."""
        if len(self.templates) == 1 and "{" not in self.templates[0]:
            return self.templates[0]
        return list(self.templates) or None

    def measure(self, candidates: Sequence[Candidate], data: Sequence[EvalData], encoder: Encoder) -> ResultTable:
        """Every model on every set; collective. Raises UsageError for a model without a text tower."""
        clock, rows, entries = Stopwatch(), [], []
        listed = [(source, sift(list_split(source, self.split), source.input, encoder.console)[0]) for source in data]
        for candidate in candidates:
            loaded = candidate.load(encoder.device)
            tower = text_tower(loaded.vit)
            if tower is None:
                raise UsageError(f"{candidate.label}: has no text tower, so nobody can tell it a class by its name")
            entries.append(candidate.entry(loaded))
            for source, split in listed:
                wording = source.prompts
                templates = self._templates or (wording.templates if wording else "openai80")
                names = self.class_names or (wording.class_names if wording else None)
                texts = class_texts(split.classes, templates, names, "prompts")
                weights = zero_shot_weights(tower, texts, encoder.device)
                features = encoder.encode(loaded, split, source.input, f"{source.name} with {candidate.label}").features
                found = scored(split, features, features @ weights.T, list(self.metrics), candidate.recipe.eval.group)
                facts: Row = {"model": candidate.label, "group": candidate.group, "data": source.name, "split": split.name}
                facts |= {"n": len(split), "classes": len(split.classes), "prompts": sum(map(len, texts))}
                rows.append({**facts, **{name: entry["value"] for name, entry in found.items()}})
                shown = ", ".join(f"{name} {entry['value']:.4f}" for name, entry in found.items() if entry["value"] is not None)
                encoder.console.line(f"{candidate.label} on {source.name}: {shown}")
            del loaded
        settings: dict[str, Any] = {**asdict(self), "metrics": list(self.metrics), "templates": list(self.templates)}
        env = environment(encoder.device, encoder.precision, dist.world_size(), 0)
        return ResultTable("zeroshot", settings, entries, rows, env, seconds=clock.seconds)

    @classmethod
    def columns(cls, rows: Sequence[Row], here: tuple[str, str]) -> Iterator[Column]:
        """What a comparison of runs shows of the rows of one run."""
        for row in rows:
            if row.get("acc") is not None:
                yield f"zero-shot {row['data']}", row["acc"], True
