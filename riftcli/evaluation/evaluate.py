"""Evaluate the saved weights of a run: what `rift eval` does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from riftcli import catalog, dist
from riftcli.console import Console, Stopwatch
from riftcli.data import reading as inputs
from riftcli.data.classes import match_classes
from riftcli.data.splits import load_splits
from riftcli.errors import UsageError, nearest
from riftcli.evaluation import metrics_json
from riftcli.evaluation import scores as evaluate
from riftcli.evaluation.candidates import open_run
from riftcli.evaluation.data_sets import DataSet, list_split
from riftcli.evaluation.encoder import Encoder
from riftcli.functional.calibration import fit_temperature
from riftcli.protocols import Predictions
from riftcli.recipe import Recipe
from riftcli.report.plots.reliability import write_reliability
from riftcli.runs import folder as runs
from riftcli.runs import provenance

SCALED = ("ece", "ece_adaptive", "brier", "nll")  # what a temperature changes; accuracy and ranking stay


def evaluate_run(
    run: Path, metrics: list[str], split_name: str, overrides: list[str], device: str = "auto", temperature: bool = False
) -> dict[str, Any]:
    """Score a run's kept weights on a split; writes RUN/eval/<dataset>-<split>/ and returns the report.

    `run` is a run folder or its model/ folder. Classes are matched by name with those the model was trained on.
    temperature: also fit one on the validation split and report the calibration with it.
    """
    clock = Stopwatch()
    torch_device = dist.init(device)
    console = Console(quiet=not dist.is_main())
    subject = open_run(run, overrides)
    recipe, folder = subject.recipe, subject.folder
    assert folder is not None
    source = DataSet.of_run(subject)
    if temperature and recipe.data.val is None:
        raise UsageError("--temperature-scaling: the recipe has no validation split to fit on (data.val)")
    names = metrics or recipe.eval.metrics
    for name in names:
        if name not in catalog.CATALOG["metric"]:
            known = catalog.names("metric")
            raise UsageError(f"--metrics {name}: unknown metric{nearest(name, known)}; one of: {', '.join(known)}")

    loaded = subject.load(torch_device)
    encoder = Encoder.of_recipe(recipe, torch_device, console)
    whole = list_split(source, split_name)
    split = match_classes(whole, loaded.classes or whole.classes, recipe.data.rules.allow_missing_classes)
    split, skipped = inputs.sift(split, recipe.input, console)

    def predicted(wanted: Any, reference: Any = None) -> Predictions:
        table = encoder.encode(loaded, wanted, recipe.input, f"{wanted.name} with the finetuned model")
        return evaluate.predictions(wanted, table, reference)

    seen = predicted(split)
    chosen: list[Any] = [catalog.component("metric", name) for name in names]
    if any(metric.needs_reference for metric in chosen):
        if not subject.is_run:
            raise UsageError(
                f"--run {run}: a model folder without its run does not say what it was finetuned from; leave out cka"
            )
        base = subject.pretrained().load(torch_device)
        table = encoder.encode(base, split, recipe.input, f"{split.name} with the pretrained model")
        seen = replace(seen, reference=table.features)
    report = metrics_json.report("eval", subject.entry(loaded), split, seen, names, recipe.data.name)
    report["data"] |= metrics_json.exceptions(_overlap(recipe), {split.name: skipped} if skipped else {})
    if temperature:
        report["temperature"] = _with_temperature(seen, predicted, source, loaded.classes, encoder)
    report["timing"] = {
        "seconds": clock.seconds,
        "images_per_second": len(split) / clock.seconds,
        "peak_memory_bytes": provenance.peak_memory_bytes(torch_device),
    }
    report["env"] = provenance.environment(torch_device, "fp32", dist.world_size(), recipe.train.seed)
    target = folder / "eval" / f"{recipe.data.name}-{split.name}"
    if dist.is_main():
        evaluate.write_tables(target, split, seen)
        scaled = report.get("temperature", {}).get("value")
        write_reliability(target, seen, scaled)
        runs.write_json(target / "metrics.json", report)
    dist.barrier()
    return {**report, "written_to": str(target / "metrics.json")}


def _with_temperature(seen: Predictions, predicted: Any, source: DataSet, classes: list[str], encoder: Encoder) -> dict[str, Any]:
    """The temperature that fits the validation split best, and the calibration on `seen` with it (Guo et al. 2017)."""
    held, _ = inputs.sift(list_split(source, "val"), source.input, encoder.console)
    held = match_classes(held, classes or held.classes, source.data.rules.allow_missing_classes)
    fitted = predicted(held)
    value = fit_temperature(fitted.logits, fitted.targets)
    scores = evaluate.score(list(SCALED), replace(seen, logits=seen.logits / value))
    return {"value": value, "fitted_on": held.name, "n": len(held), "metrics": scores}


def _overlap(recipe: Recipe) -> dict[str, int]:
    """What the splits of the run share, where that was allowed: every report of such a run says it."""
    data = recipe.data
    if not data.rules.allow_overlap:
        return {}
    return load_splits(data.source, data.train, data.val, data.test, data.rules).overlap
