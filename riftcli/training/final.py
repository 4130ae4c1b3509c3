"""The report at the end of a run: test split and retention sets, measured once, with the kept weights."""

from __future__ import annotations

from typing import Any

from riftcli.data.classes import class_counts
from riftcli.data.splits import fingerprint
from riftcli.evaluation import metrics_json
from riftcli.evaluation import scores as evaluate
from riftcli.evaluation.metrics_json import eval_name, model_entry
from riftcli.report.plots.reliability import write_reliability
from riftcli.runs import provenance
from riftcli.training.best import load_kept
from riftcli.training.retention import measure_retention
from riftcli.training.setup import Parts
from riftcli.training.state import Session


def final_report(session: Session) -> dict[str, Any]:
    """metrics.json of a run; collective. Also writes eval/<dataset>-<split>/."""
    parts, progress, recipe = session.parts, session.progress, session.parts.recipe
    trainable = sum(p.numel() for p in parts.vit.parameters() if p.requires_grad)  # before adapters are folded in
    epoch = load_kept(session)
    test = parts.splits.test
    seen = parts.predict(test, "test")
    weights = session.folder.path / "model" / "model.safetensors" if session.folder else None
    model = model_entry(recipe, parts.vit, weights, epoch, trainable)
    report = metrics_json.report("finetune", model, test, seen, recipe.eval.metrics, recipe.data.name)
    report["data"] |= metrics_json.exceptions(parts.splits.overlap, parts.skipped)
    report["training_data"] = training_data(parts)
    report["validation"] = progress.best_metrics
    report["retention"] = measure_retention(parts)
    images = progress.step * recipe.train.batch_size
    report["timing"] = {
        "train_seconds": progress.train_seconds,
        "images_per_second": images / progress.train_seconds if progress.train_seconds else None,
        "peak_memory_bytes": provenance.peak_memory_bytes(parts.device),
    }
    report["env"] = parts.environment()
    if session.folder:
        place = session.folder.path / "eval" / eval_name(report)
        evaluate.write_tables(place, test, seen)
        write_reliability(place, seen)
    return report


def training_data(parts: Parts) -> dict[str, Any]:
    """What was trained on: counts per class, and what was done about their imbalance."""
    train, weights = parts.splits.train, parts.step.objective.class_weights
    return {
        "split": train.name,
        "n": len(train),
        "class_counts": class_counts(train),
        "class_weights": None if weights is None else dict(zip(train.classes, weights.tolist(), strict=True)),
        "sampler": parts.recipe.train.sampler,
        "fingerprint": fingerprint(train),
    }


def summary(report: dict[str, Any]) -> str:
    """The last lines of a run: what it cost and what it kept."""
    data, shown = report["data"], {"acc": "accuracy", "cka": "CKA to the pretrained model"}
    lines = [f"test split of {data['name']} ({data['n']} images), weights of epoch {report['model']['epoch']}:"]
    for name, entry in report["metrics"].items():
        value = "undefined" if entry["value"] is None else f"{entry['value']:.4f}"
        lines.append(f"  {shown.get(name, name)}: {value}")
    for name, entry in report["retention"].items():
        kept = "undefined" if entry["cka"] is None else f"{entry['cka']:.4f}"
        lines.append(f"  kept on {name}: kNN {entry['knn_before']:.4f} before -> {entry['knn_after']:.4f} after, CKA {kept}")
    timing = report["timing"]
    lines.append(f"  cost: {timing['train_seconds']:.1f} s of training, {timing['images_per_second'] or 0:.0f} images/s")
    return "\n".join(lines)
