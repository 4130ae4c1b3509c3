"""The report at the end of a run: test split and retention sets, measured once, with the kept weights."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from riftcli import catalog
from riftcli.data.classes import class_counts
from riftcli.data.kept_images import KeptImages
from riftcli.data.parallel import data_workers
from riftcli.data.splits import fingerprint
from riftcli.evaluation.metrics_json import eval_name, model_part, split_report, timing_part
from riftcli.evaluation.scores import write_tables
from riftcli.models.image_text import text_tower
from riftcli.models.open_clip_folder import save_image_tower
from riftcli.models.weights import saved_weights, write_tensors
from riftcli.recipe import Recipe
from riftcli.runs.provenance import installed
from riftcli.runs.result_table import format_number
from riftcli.training.best import load_kept
from riftcli.training.progress import Progress
from riftcli.training.retention import measure_retention
from riftcli.training.setup import Setup
from riftcli.training.state import TrainState
from riftcli.training.transfer import measure_transfer


def final_report(state: TrainState) -> dict[str, Any]:
    """metrics.json of a run; collective. Also writes the tables of eval/<dataset>-<split>/."""
    setup, progress, recipe = state.setup, state.progress, state.setup.recipe
    vit = setup.network.vit
    trainable = sum(p.numel() for p in vit.parameters() if p.requires_grad)  # before adapters are folded in
    epoch = load_kept(state)
    test = setup.data.splits.reported
    seen = setup.predict(test, setup.data.splits.reported_as)
    weights = saved_weights(state.folder.path / "model") if state.folder else None
    images, seconds = progress.step * recipe.train.batch_size, progress.train_seconds
    report = split_report(
        "finetune",
        test,
        seen,
        recipe.eval.metrics,
        model=model_part(vit, recipe.method, weights, epoch, trainable),
        data_name=recipe.data.name,
        overlap=setup.data.splits.admitted,
        skipped=setup.data.skipped,
        timing={},
        env=setup.environment(),
        chose_weights=setup.data.splits.test is None,
    )
    report["training_data"] = training_data(setup)
    report["validation"] = progress.best_metrics
    if progress.start_metrics:
        report["validation_start"] = progress.start_metrics
        worse = worse_than_start(recipe.eval.best, progress, epoch)
        if worse:
            report["worse_than_start"] = worse
            state.console.warn(worse)
    if state.steering:
        report["strength"] = state.steering.outcome(progress.best_metrics.get("cka_debiased"))
        if report["strength"]["note"]:
            state.console.warn(report["strength"]["note"])
    report["retention"] = measure_retention(setup)
    report |= measure_transfer(setup)
    report["timing"] = timing_part(setup.device, images / seconds if seconds else None, train_seconds=seconds)
    report["timing"]["data_seconds"] = progress.data_seconds
    faster = faster_images(report["timing"], recipe, setup.data.splits.train.paths is not None, setup.data.images)
    if faster:
        report["timing"]["note"] = faster
    if state.folder and recipe.adapter.saved != "unmerged" and text_tower(vit) is not None:
        save_image_tower(state.folder.path / "image_tower", vit, setup.network.preprocessing, write_tensors)
    if state.folder:
        write_tables(state.folder.path / "eval" / eval_name(report), test, seen)
        report["warnings"] = warnings_in(state.folder.path / "train.log")
    return report


def worse_than_start(metric: str, progress: Progress, epoch: int | None) -> str | None:
    """What to say of a run whose best weights validate worse than those before the first step; None for the others."""
    before, after = progress.start_metrics.get(metric), progress.best_metrics.get(metric)
    more: bool = catalog.component("metric", metric).higher_is_better  # type: ignore[attr-defined]
    if before is None or after is None or not (after < before if more else after > before):
        return None
    return (
        f"training made it worse: validation {metric} was {before:.4f} before the first step and is {after:.4f} with the kept "
        f"weights (epoch {epoch}); try a lower optim.lr, or adapter.name linear, which leaves the backbone alone"
    )


def warnings_in(log: Path) -> list[str]:
    """Every warning of a run once, in order, those from before an interruption too."""
    lines = log.read_text(encoding="utf-8").splitlines() if log.is_file() else []
    return list(dict.fromkeys(line.removeprefix("warning: ") for line in lines if line.startswith("warning: ")))


def training_data(setup: Setup) -> dict[str, Any]:
    """What was trained on: counts per class, and what was done about their imbalance."""
    train, weights = setup.data.splits.train, setup.step.objective.class_weights
    return {
        "split": train.name,
        "n": len(train),
        "class_counts": class_counts(train),
        "class_weights": None if weights is None else dict(zip(train.classes, weights.tolist(), strict=True)),
        "sampler": setup.recipe.train.sampler,
        "fingerprint": fingerprint(train),
    }


def summary(report: dict[str, Any]) -> str:
    """The last lines of a run: what it cost and what it kept."""
    data, names = report["data"], {"acc": "accuracy", "cka": "CKA to the pretrained model"}
    which = "validation (there is no test split)" if data.get("chose_weights") else "test split"
    lines = [f"{which} of {data['name']} ({data['n']} images), weights of epoch {report['model']['epoch']}:"]
    for name, entry in report["metrics"].items():
        value = "undefined" if entry["value"] is None else f"{entry['value']:.4f}"
        lines.append(f"  {names.get(name, name)}: {value}")
    for name, entry in report["retention"].items():
        before, after, kept = (format_number(entry[key]) for key in ("knn_before", "knn_after", "cka"))
        lines.append(f"  kept on {name}: kNN {before} before -> {after} after, CKA {kept}")
        if entry["probe_before"] is not None:
            lines.append(f"    linear probe {entry['probe_before']:.4f} before -> {entry['probe_after']:.4f} after")
    if "strength" in report:
        lines.append(_steered(report["strength"]))
    if "worse_than_start" in report:
        lines.append(f"  WORSE THAN BEFORE TRAINING: {report['worse_than_start']}")
    timing = report["timing"]
    waited = timing["data_seconds"] / timing["train_seconds"] if timing["train_seconds"] else 0.0
    lines.append(
        f"  cost: {timing['train_seconds']:.1f} s of training ({waited:.0%} of it waiting for images), "
        f"{timing['images_per_second'] or 0:.0f} images/s"
    )
    if "note" in timing:
        lines.append(f"  {timing['note']}")
    return "\n".join(lines)


MUCH = 0.2  # share of the training time in which images are waited for, from which something is to be said
LONG = 60.0  # seconds of such waiting


def faster_images(timing: dict[str, Any], recipe: Recipe, from_files: bool, kept: KeptImages | None = None) -> str | None:
    """What would let a run wait less for its images; None for one that waits little, or where everything was done."""
    waited = timing["data_seconds"]
    if waited < LONG or waited < MUCH * timing["train_seconds"]:
        return None
    found, workers, most = [], recipe.train.workers, data_workers("auto")
    if workers != "auto" and workers < most:
        found.append(f"train.workers auto ({most} here) in place of {workers}")
    if kept is not None and kept.needed is not None:
        found.append(f"launch.image_memory {math.ceil(kept.needed / 1e9)} (GB), for all decoded images")
    if from_files and recipe.input.cache is None and not (kept is not None and kept.room):
        found.append("input.cache FOLDER, which keeps decoded images")
    if from_files and recipe.input.resize != "pil" and not installed("torchcodec"):
        found.append('the extra "decode" (JPEGs in half the time)')
    return f"images were waited for {waited:.0f} s; faster: {'; '.join(found)}" if found else None


def _steered(outcome: dict[str, Any]) -> str:
    """What a strength rule came to."""
    rule = "".join(f" {name} {value:g}" for name, value in outcome.get("rule", {}).items())
    similarity = outcome.get("cka_debiased")
    ended = "" if similarity is None else f", CKA on validation {similarity:.3f}"
    return f"  strength{rule}: {outcome['strength']:.3g} at the end{ended}"
