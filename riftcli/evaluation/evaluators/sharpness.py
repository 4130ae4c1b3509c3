"""How sharp the minimum is that a run ended in: what `rift sharpness` does (RIFT paper Table 4)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch

from riftcli import catalog, dist
from riftcli.console import Stopwatch
from riftcli.data.classes import match_classes
from riftcli.data.loader import Batch, eval_loader
from riftcli.data.reading import sift, with_pixels
from riftcli.data.split import Split
from riftcli.data.splits import load_splits
from riftcli.data.transforms import EvalTransform
from riftcli.errors import ModelError, UsageError
from riftcli.evaluation.candidates import Candidate, LoadedModel
from riftcli.evaluation.data_sets import EvalData, list_split
from riftcli.evaluation.encoder import Encoder
from riftcli.functional.sharpness import Ascent, measure
from riftcli.protocols import ObjectiveFn
from riftcli.runs.provenance import environment
from riftcli.runs.result_table import Column, ResultTable, Row, format_number, where

KEPT_BYTES = 4 << 30  # decoded splits up to this size are read once, not once per pass


@dataclass(frozen=True)
class Sharpness:
    """How much the loss can rise when all weights move a little (RIFT paper Table 4).

    ascent: how the worst weights nearby are sought, and how far away. split: train, val, test, or any split of the data source.
    """

    ascent: Ascent = Ascent()
    split: str = "test"

    usual: ClassVar[dict[str, Any]] = {"method": "sam", "rho": 0.01, "adaptive": 0, "restarts": 0}

    def measure(self, candidates: Sequence[Candidate], data: Sequence[EvalData], encoder: Encoder) -> ResultTable:
        """Loss, highest loss nearby and their difference for every run, on its own data where `data` is empty; collective."""
        clock = Stopwatch()
        rows: list[Row] = []
        entries = []
        for candidate in candidates:
            loaded = candidate.load(encoder.device)
            if loaded.vit.num_classes == 0:
                raise UsageError(f"{candidate.label}: a backbone without a head has no loss; sharpness needs a finetuned model")
            entries.append(candidate.entry(loaded))
            for source in data or [EvalData.of_run(candidate)]:
                row = self._row(candidate, loaded, source, encoder)
                rows.append(row)
                encoder.console.line(
                    f"{candidate.label} on {source.name}: loss {row['loss']:.4f}, highest within {self.ascent.rho:g} at least "
                    f"{format_number(row['highest_loss'])}, sharpness at least {format_number(row['sharpness'])}"
                )
            del loaded
        env = environment(encoder.device, "fp32", dist.world_size(), self.ascent.seed)
        settings = asdict(self.ascent)
        return ResultTable("sharpness", settings, entries, rows, env, seconds=clock.seconds, usual=self.usual)

    def _row(self, candidate: Candidate, loaded: LoadedModel, source: EvalData, encoder: Encoder) -> Row:
        split, _ = sift(list_split(source, self.split), source.input, encoder.console)
        split = match_classes(split, loaded.classes or split.classes, source.data.rules.allow_missing_classes)
        objective = _objective(candidate, source, split)
        found = measure(loaded.classifier, _evaluator(loaded, split, source, objective, encoder), self.ascent)
        if not math.isfinite(found.loss):
            raise ModelError(
                f"{candidate.label} on {source.name}: its loss is {found.loss}; its logits are not finite: take other weights"
            )
        finite = math.isfinite(found.highest)
        return {
            "model": candidate.label,
            "group": candidate.group,
            "data": source.name,
            "split": split.name,
            "n": len(split),
            "method": self.ascent.method,
            "rho": self.ascent.rho,
            "adaptive": int(self.ascent.adaptive),
            "restarts": self.ascent.restarts,
            "bound": "lower",
            "loss": found.loss,
            "highest_loss": found.highest if finite else None,
            "sharpness": found.value if finite else None,
            "gradient_norm": found.gradient_norm,
            "first_order": self.ascent.rho * found.gradient_norm,
        }

    @classmethod
    def columns(cls, rows: Sequence[Row], here: tuple[str, str]) -> Iterator[Column]:
        """What a comparison of runs shows of the rows of one run; here: data and split that the run itself reports on."""
        for row in rows:
            yield f"sharpness {where(row, here, cls.usual)}".strip(), row["sharpness"], False


def _objective(candidate: Candidate, source: EvalData, split: Split) -> ObjectiveFn:
    """The run's task loss; class weights are those of the training split, and only then it is listed.

    Of a contrastive run it is the cross-entropy of its zero-shot head, which stays as it is: a set has no loss of pairs.
    """
    recipe, targets = candidate.recipe, split.targets
    if getattr(recipe.objective, "class_weights", "none") not in ("none", None) and candidate.is_run:
        data = recipe.data
        targets = load_splits(data.source, data.train, data.val, data.test, data.rules).train.targets
    if recipe.objective.task != split.task:
        raise UsageError(f"{candidate.label}: trained with a {recipe.objective.task} loss, and {source.name} is {split.task}")
    objective = recipe.objective
    if getattr(objective, "texts", None) == "sample":
        objective = catalog.component("objective", "cross_entropy")()
    return objective.build(torch.from_numpy(targets), len(split.classes))


def _evaluator(
    loaded: LoadedModel, split: Split, source: EvalData, objective: ObjectiveFn, encoder: Encoder
) -> Callable[[bool], float]:
    """The mean loss of the whole split over all ranks, fp32, eval mode; with its gradient where asked."""
    split = with_pixels(split, source.input, loaded.preprocessing, encoder.console)
    transform = EvalTransform(loaded.preprocessing)
    device, model = encoder.device, loaded.classifier
    total = float(objective.weights(torch.from_numpy(split.targets)).sum())

    def batches() -> Iterable[Batch]:
        return eval_loader(split, transform, encoder.batch_size, encoder.workers, dist.rank(), dist.world_size())

    kept = list(batches()) if len(split) * loaded.preprocessing.size**2 * 3 <= KEPT_BYTES else None

    def evaluate(with_gradient: bool) -> float:
        model.zero_grad(set_to_none=True)
        loss = torch.zeros((), dtype=torch.float64, device=device)
        with torch.set_grad_enabled(with_gradient), torch.autocast(device.type, enabled=False):
            for images, targets, _ in kept if kept is not None else batches():
                logits = model(loaded.preprocessing.normalise(images.to(device, non_blocking=True))).logits
                part = objective.losses(logits, targets.to(device)).sum() / total
                if with_gradient:
                    part.backward()
                loss += part.detach().double()
        if with_gradient and dist.world_size() > 1:
            for p in model.parameters():
                if p.requires_grad:  # a rank without batches has no gradients, and all must take part
                    p.grad = dist.sum_over_ranks(torch.zeros_like(p) if p.grad is None else p.grad)
        return float(dist.sum_over_ranks(loss))

    return evaluate


def table_4(rows: Sequence[Row]) -> list[tuple[str, list[tuple[str, dict[str, Any]]]]]:
    """The paper's three blocks: name -> (group, data -> (mean, std)) with an average over the data sets."""
    from riftcli.runs.result_table import averaged

    blocks = []
    sets = list(dict.fromkeys(row["data"] for row in rows))
    for title, key in (("highest loss, at least", "highest_loss"), ("loss", "loss"), ("sharpness, at least", "sharpness")):
        cells = averaged(rows, ["group", "data"], key)
        lines = []
        for group in dict.fromkeys(row["group"] for row in rows):
            found = {name: cells[group, name][:2] for name in sets if (group, name) in cells}
            lines.append((group, found))
        blocks.append((title, lines))
    return blocks
