"""How sharp the minimum is that a run ended in: what `rift sharpness` does (RIFT paper Table 4)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from typing import Any

import torch

from riftcli import dist
from riftcli.console import Stopwatch
from riftcli.data import reading as inputs
from riftcli.data.classes import match_classes
from riftcli.data.loader import Batch, eval_loader
from riftcli.data.split import Split
from riftcli.data.splits import load_splits
from riftcli.data.transforms import EvalTransform
from riftcli.errors import UsageError
from riftcli.evaluation.candidates import Loaded, Subject
from riftcli.evaluation.data_sets import DataSet, list_split
from riftcli.evaluation.encoder import Encoder
from riftcli.functional.sharpness import Ascent, measure
from riftcli.protocols import ObjectiveFn
from riftcli.runs import provenance
from riftcli.runs.result_table import Findings, Row

KEPT_BYTES = 4 << 30  # decoded splits up to this size are read once, not once per pass


def sharpness_run(
    subjects: Sequence[Subject], sets: Sequence[DataSet] | None, split_name: str, ascent: Ascent, encoder: Encoder
) -> Findings:
    """Loss, highest loss nearby and their difference for every run, on its own data or on `sets`; collective."""
    clock = Stopwatch()
    rows: list[Row] = []
    entries = []
    for subject in subjects:
        loaded = subject.load(encoder.device)
        if loaded.vit.num_classes == 0:
            raise UsageError(f"{subject.label}: a backbone without a head has no loss; sharpness needs a finetuned model")
        entries.append(subject.entry(loaded))
        for source in sets or [DataSet.of_run(subject)]:
            split, _ = inputs.sift(list_split(source, split_name), source.input, encoder.console)
            split = match_classes(split, loaded.classes or split.classes, source.data.rules.allow_missing_classes)
            objective = _objective(subject, source, split)
            found = measure(loaded.classifier, _evaluator(loaded, split, source, objective, encoder), ascent)
            rows.append(
                {
                    "model": subject.label,
                    "group": subject.group,
                    "data": source.name,
                    "split": split.name,
                    "n": len(split),
                    "method": ascent.method,
                    "rho": ascent.rho,
                    "adaptive": int(ascent.adaptive),
                    "loss": found.loss,
                    "highest_loss": found.highest,
                    "sharpness": found.value,
                    "gradient_norm": found.gradient_norm,
                    "first_order": ascent.rho * found.gradient_norm,
                }
            )
            encoder.console.line(
                f"{subject.label} on {source.name}: loss {found.loss:.4f}, highest within {ascent.rho:g} {found.highest:.4f}, "
                f"sharpness {found.value:.4f}"
            )
        del loaded
    env = provenance.environment(encoder.device, "fp32", dist.world_size(), ascent.seed)
    return Findings("sharpness", asdict(ascent), entries, rows, env, seconds=clock.seconds)


def _objective(subject: Subject, source: DataSet, split: Split) -> ObjectiveFn:
    """The run's task loss; class weights are those of the training split, and only then it is listed."""
    recipe, targets = subject.recipe, split.targets
    if getattr(recipe.objective, "class_weights", "none") not in ("none", None) and subject.is_run:
        data = recipe.data
        targets = load_splits(data.source, data.train, data.val, data.test, data.rules).train.targets
    if recipe.objective.task != split.task:
        raise UsageError(f"{subject.label}: trained with a {recipe.objective.task} loss, and {source.name} is {split.task}")
    return recipe.objective.build(torch.from_numpy(targets), len(split.classes))


def _evaluator(
    loaded: Loaded, split: Split, source: DataSet, objective: ObjectiveFn, encoder: Encoder
) -> Callable[[bool], float]:
    """The mean loss of the whole split over all ranks, fp32, eval mode; with its gradient where asked."""
    split = inputs.with_pixels(split, source.input, loaded.preprocessing, encoder.console)
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
    for title, key in (("highest loss", "highest_loss"), ("loss", "loss"), ("sharpness", "sharpness")):
        cells = averaged(rows, ["group", "data"], key)
        lines = []
        for group in dict.fromkeys(row["group"] for row in rows):
            found = {name: cells[group, name][:2] for name in sets if (group, name) in cells}
            lines.append((group, found))
        blocks.append((title, lines))
    return blocks
