"""Evaluate the saved weights of a run: what `rift eval` does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from riftcli import catalog, dist
from riftcli.console import Console, Stopwatch
from riftcli.data.images import FileReader
from riftcli.data.split import Split
from riftcli.data.splits import fingerprint, load_splits
from riftcli.errors import UsageError, did_you_mean
from riftcli.evaluation.candidates import Candidate, LoadedModel, open_run
from riftcli.evaluation.data_sets import EvalData, list_split, matched_split
from riftcli.evaluation.encoder import Encoder
from riftcli.evaluation.ensemble import ensemble_entry, load_members, mean_logits, members_of
from riftcli.evaluation.metrics_json import eval_name, split_report, timing_part
from riftcli.evaluation.scores import predictions, score, write_reliability, write_tables
from riftcli.files import write_json
from riftcli.functional.calibration import fit_temperature
from riftcli.protocols import UNKNOWN, Predictions
from riftcli.recipe import Recipe
from riftcli.recipe.image_sections import InputSection
from riftcli.runs.provenance import environment

SCALED = ("ece", "ece_adaptive", "brier", "nll")  # what a temperature changes; accuracy and ranking stay


def evaluate_run(
    run: Path,
    metrics: Sequence[str],
    split_name: str,
    overrides: Sequence[str],
    device: str = "auto",
    temperature: bool = False,
    console: Console | None = None,
) -> dict[str, Any]:
    """Score a run's kept weights on a split; writes RUN/eval/<dataset>-<split>/ and returns the report, with the error that
    kept it from being written as `unwritten`.

    `run` is a run folder or its model/ folder. Classes are matched by name with those the model was trained on.
    temperature: also fit one on the validation split and report the calibration with it.
    """
    clock = Stopwatch()
    torch_device = dist.init(device)
    candidate = open_run(run, overrides)
    recipe = candidate.recipe
    assert candidate.folder is not None
    source = EvalData.of_run(candidate)
    if temperature and recipe.data.val is None:
        raise UsageError("--temperature-scaling: the recipe has no validation split to fit on (data.val)")
    names = list(metrics) or recipe.eval.metrics
    check_metrics(names)

    loaded = candidate.load(torch_device)
    encoder = Encoder.of_recipe(recipe, torch_device, console or Console(quiet=not dist.is_main()))
    split, skipped = matched_split(source, split_name, loaded.classes, encoder.console)
    seen = _predicted(loaded, split, recipe, encoder)
    if any(_component(name).needs_pretrained for name in names):
        seen = replace(seen, pretrained=_pretrained_features(candidate, run, split, encoder))
    env = environment(torch_device, recipe.eval.precision, dist.world_size(), recipe.train.seed)
    report = split_report(
        "eval",
        split,
        seen,
        names,
        model=candidate.entry(loaded),
        data_name=recipe.data.name,
        overlap=_overlap(recipe),
        skipped={split.name: skipped} if skipped else {},
        timing={},
        env=env,
        chose_weights=_chose_weights(recipe, split_name),
    )
    if temperature:
        report["temperature"] = _with_temperature(seen, source, loaded, recipe, encoder)
    report["timing"] = timing_part(torch_device, len(split) / clock.seconds, seconds=clock.seconds)
    target = candidate.folder / "eval" / eval_name(report)
    failed = _write(target, split, seen, report, recipe.input) if dist.is_main() else None
    dist.barrier()
    return {**report, "written_to": str(target / "metrics.json"), "unwritten": failed}


def _readable(split: Split, reading: InputSection) -> Split:
    """The split with images as the recipe reads them: 16-bit ones cannot be shown otherwise."""
    return split if split.paths is None else replace(split, read=FileReader(split.paths, reading.bit_depth))


def _write(target: Path, split: Split, seen: Predictions, report: dict[str, Any], reading: InputSection) -> OSError | None:
    """The report and its tables; returns what went wrong: a run may be somebody else's, and what was measured is not lost."""
    try:
        write_tables(target, _readable(split, reading), seen)
        if "temperature" in report:
            write_reliability(
                target / "reliability_scaled.csv", replace(seen, logits=seen.logits / report["temperature"]["value"])
            )
        write_json(target / "metrics.json", report)
    except OSError as error:
        return error
    return None


def evaluate_ensemble(
    run: Path,
    metrics: Sequence[str],
    split_name: str,
    overrides: Sequence[str],
    device: str = "auto",
    console: Console | None = None,
) -> dict[str, Any]:
    """Score the mean of the probabilities of all runs below a folder of seeds or folds; writes FOLDER/eval/<dataset>-<split>/.

    Metrics of features have no meaning for a mean of probabilities: they are left out where the recipe names them, and refused
    where they are asked for. Returns the report as evaluate_run does.
    """
    clock = Stopwatch()
    torch_device = dist.init(device)
    members = members_of(run, overrides)
    recipe = members[0].recipe
    check_metrics(metrics)
    of_features = {name for name in metrics or recipe.eval.metrics if _component(name).needs_pretrained}
    if metrics and of_features:
        raise UsageError(f"--metrics {', '.join(sorted(of_features))}: an ensemble has probabilities, and no features of its own")
    names = [name for name in metrics or recipe.eval.metrics if name not in of_features]
    models = load_members(members, torch_device)
    encoder = Encoder.of_recipe(recipe, torch_device, console or Console(quiet=not dist.is_main()))
    _check_unseen(members, split_name)
    split, skipped = matched_split(EvalData.of_run(members[0]), split_name, models[0].classes, encoder.console)
    tables = [encoder.encode(model, split, recipe.input, f"{split.name}, run {i + 1}") for i, model in enumerate(models)]
    mean = replace(tables[0], logits=mean_logits([table.logits for table in tables], models[0].task))
    seen = predictions(split, mean, None, recipe.eval.group)
    report = split_report(
        "eval",
        split,
        seen,
        names,
        model=ensemble_entry(members, models, run),
        data_name=recipe.data.name,
        overlap=_overlap(recipe),
        skipped={split.name: skipped} if skipped else {},
        timing=timing_part(torch_device, len(split) / clock.seconds, seconds=clock.seconds),
        env=environment(torch_device, recipe.eval.precision, dist.world_size(), recipe.train.seed),
        chose_weights=_chose_weights(recipe, split_name),
    )
    target = run / "eval" / eval_name(report)
    failed = _write(target, split, seen, report, recipe.input) if dist.is_main() else None
    dist.barrier()
    return {**report, "written_to": str(target / "metrics.json"), "unwritten": failed}


def _check_unseen(members: Sequence[Candidate], split_name: str) -> None:
    """Raise UsageError where the members have different images in this split: what one of them holds out, others trained on."""
    prints = {fingerprint(list_split(EvalData.of_run(member), split_name)) for member in members}
    if len(prints) > 1:
        raise UsageError(
            f"--split {split_name}: the runs have different images in it, as folds have, so some were trained on those of "
            "others; measure an ensemble on images that none has seen: a test split that all share"
        )


def _chose_weights(recipe: Recipe, split_name: str) -> bool:
    return recipe.data.test is None and split_name in ("val", "test")


def _component(name: str) -> Any:
    return catalog.component("metric", name)


def check_metrics(names: Sequence[str]) -> None:
    """Raise UsageError for a metric that is not in the catalog."""
    for name in names:
        if name not in catalog.CATALOG["metric"]:
            known = catalog.names("metric")
            raise UsageError(f"--metrics {name}: unknown metric{did_you_mean(name, known)}; one of: {', '.join(known)}")


def _predicted(loaded: LoadedModel, split: Split, recipe: Recipe, encoder: Encoder) -> Predictions:
    table = encoder.encode(loaded, split, recipe.input, f"{split.name} with the finetuned model")
    return predictions(split, table, None, recipe.eval.group)


def _pretrained_features(candidate: Candidate, run: Path, split: Split, encoder: Encoder) -> Any:
    """(N, D) of the model that the run was finetuned from."""
    if not candidate.is_run:
        raise UsageError(f"--run {run}: a model folder without its run does not say what it was finetuned from; leave out cka")
    base = candidate.pretrained().load(encoder.device)
    what = f"{split.name} with the pretrained model"
    return encoder.encode(base, split, candidate.recipe.input, what).features


def _with_temperature(
    seen: Predictions, source: EvalData, loaded: LoadedModel, recipe: Recipe, encoder: Encoder
) -> dict[str, Any]:
    """The temperature that fits the validation split best, and the calibration on `seen` with it (Guo et al. 2017)."""
    held, _ = matched_split(source, "val", loaded.classes, encoder.console)
    fitted = _predicted(loaded, held, recipe, encoder)
    if fitted.task == "multilabel" and bool((fitted.targets == UNKNOWN).all()):
        raise UsageError("--temperature-scaling: no label of the validation split is known (data.uncertain: ignore)")
    value = fit_temperature(fitted.logits, fitted.targets)
    scores = score(list(SCALED), replace(seen, logits=seen.logits / value))
    return {"value": value, "fitted_on": held.name, "n": len(held), "metrics": scores}


def _overlap(recipe: Recipe) -> dict[str, int]:
    """What the splits of the run share, where that was allowed: every report of such a run says it."""
    data = recipe.data
    if not data.rules.allow_overlap:
        return {}
    return load_splits(data.source, data.train, data.val, data.test, data.rules).admitted
