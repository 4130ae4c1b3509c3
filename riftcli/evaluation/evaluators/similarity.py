"""How alike two models see the same images: what `rift similarity` does (RIFT paper Tables 1 and 4, similarity-space paper)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from riftcli import catalog, dist
from riftcli.console import Stopwatch
from riftcli.data import reading as inputs
from riftcli.data.loader import eval_loader
from riftcli.data.split import Split
from riftcli.data.transforms import EvalTransform
from riftcli.errors import DataError, UsageError, nearest
from riftcli.evaluation.candidates import Loaded, Subject, bases_of
from riftcli.evaluation.data_sets import DataSet, list_split
from riftcli.evaluation.encoder import Encoder
from riftcli.evaluation.features import Table
from riftcli.evaluation.layer_features import encode_layers, layer_names
from riftcli.functional.cka import cka_table
from riftcli.functional.thinning import thinned
from riftcli.protocols import Metric, Predictions
from riftcli.runs import provenance
from riftcli.runs.result_table import Findings, Row

DEFAULT = ["cka", "cka_debiased", "cka_rbf", "rsa", "rsa_spearman", "procrustes", "svcca", "mutual_knn", "effective_rank"]


def measures() -> list[str]:
    """Names of the metrics that compare two models."""
    metrics: dict[str, Any] = {name: catalog.component("metric", name) for name in catalog.names("metric")}
    return [name for name, metric in metrics.items() if metric.needs_reference]


@dataclass(frozen=True)
class Question:
    """What is compared. intervals: random halves that the spread of every measure is estimated from, 0 for none.
    maps: also where every sample lies on a plane, before and after (PCA and t-SNE).
    """

    metrics: tuple[str, ...]
    split: str = "test"
    all_layers: bool = False
    intervals: int = 30
    seed: int = 0
    maps: bool = False

    def __post_init__(self) -> None:
        known = measures()
        for name in self.metrics:
            if name not in known:
                raise UsageError(f"--metrics {name}: no such similarity{nearest(name, known)}; one of: {', '.join(known)}")


def similarity_run(
    subjects: Sequence[Subject], against: Subject | None, sets: Sequence[DataSet], question: Question, encoder: Encoder
) -> Findings:
    """Every measure of every model against `against`, or against the model that it was finetuned from; collective.

    Both models see the same samples, each through its own transform.
    """
    clock, console = Stopwatch(), encoder.console
    rows: list[Row] = []
    tables: dict[str, list[Row]] = {"layers": [], "map": []}
    entries: dict[str, dict[str, Any]] = {}
    kept: dict[tuple[str, str], Any] = {}  # the reference is encoded once for all its runs
    starts = {} if against else bases_of(subjects)
    for subject in subjects:
        other = against or starts[subject.label]
        loaded = subject.load(encoder.device)
        entries[subject.label] = subject.entry(loaded)
        for source in sets:
            split, _ = inputs.sift(list_split(source, question.split), source.input, console)
            facts = {
                "model": subject.label,
                "group": subject.group,
                "reference": other.label,
                "data": source.name,
                "split": split.name,
                "n": len(split),
            }
            what = f"{source.name} with"
            after = encoder.encode(loaded, split, source.input, f"{what} {subject.label}")
            layers = _layers(loaded, split, source, encoder) if question.all_layers else None
            key = (other.identity, source.name)
            if key not in kept:
                base = other.load(encoder.device)
                entries.setdefault(other.label, other.entry(base))
                table = encoder.encode(base, split, source.input, f"{what} {other.label}")
                kept[key] = (table, _layers(base, split, source, encoder) if question.all_layers else None, tuple(split.ids))
                del base
            before, base_layers, ids = kept[key]
            if ids != tuple(split.ids):
                raise DataError(
                    f"{subject.label} and {other.label}: not the same samples of {source.name}; similarity needs the same "
                    "images in the same order"
                )
            with console.progress(f"{subject.label}, {len(question.metrics)} measures", len(question.metrics)) as bar:
                found = compare(before, after, split, question, bar.advance) if dist.is_main() else []
            for row in dist.broadcast_object(found):
                rows.append({**facts, **row})
            if layers is not None and base_layers is not None:
                tables["layers"] += [{**facts, **cell} for cell in layer_rows(base_layers, layers)]
            if question.maps and dist.is_main():
                tables["map"] += [{**facts, **point} for point in map_rows(before, after, split, question.seed)]
    env = provenance.environment(encoder.device, "fp32", dist.world_size(), question.seed)
    settings = {"metrics": list(question.metrics), "split": question.split, "intervals": question.intervals}
    filled = {name: table for name, table in tables.items() if table}
    return Findings("similarity", settings, list(entries.values()), rows, env, filled, clock.seconds)


def compare(
    before: Table, after: Table, split: Split, question: Question, tick: Callable[[int], None] = lambda n: None
) -> list[Row]:
    """One row per measure: value, interval of 95 %, and what the measure says beside it."""
    targets = torch.from_numpy(split.targets)
    whole = Predictions(after.logits, targets, after.features, split.classes, split.task, before.features)
    rows = []
    for name in question.metrics:
        metric: Metric = catalog.component("metric", name)()
        entry = metric.compute(whole)
        spread = half_sample_spread(metric, whole, question.intervals, question.seed) if entry["value"] is not None else None
        low, high = (None, None) if spread is None else (entry["value"] - 1.96 * spread, entry["value"] + 1.96 * spread)
        beside = {k: v for k, v in entry.items() if k not in ("value", "reference")}
        rows.append({"metric": name, "value": entry["value"], "low": low, "high": high, "details": beside})
        tick(1)
    return rows


def half_sample_spread(metric: Metric, seen: Predictions, draws: int, seed: int) -> float | None:
    """Standard error of a measure from random halves of the samples: for halves, the delete-d jackknife needs no factor
    (Shao and Wu 1989). The ordinary bootstrap draws samples twice, and a copy is its own nearest neighbour at distance 0.
    None without draws, or where a half is undefined.
    """
    used = thinned(len(seen.targets), getattr(metric, "at_most", None))  # what the value itself was computed from
    n = len(used)
    if draws < 2 or n < 8:
        return None
    generator = torch.Generator().manual_seed(seed)
    values = []
    for _ in range(draws):
        half = used[torch.randperm(n, generator=generator)[: n // 2].sort().values]
        assert seen.reference is not None
        part = Predictions(
            seen.logits[half], seen.targets[half], seen.features[half], seen.classes, seen.task, seen.reference[half]
        )
        value = metric.compute(part)["value"]
        if value is None:
            return None
        values.append(value)
    return float(torch.tensor(values, dtype=torch.float64).std())


def layer_rows(before: list[torch.Tensor], after: list[torch.Tensor]) -> list[Row]:
    """The cells of the layer x layer table as rows."""
    table = cka_table(before, after)
    ours, theirs = layer_names(len(before)), layer_names(len(after))
    return [
        {"reference_layer": x, "layer": y, "cka": None if table[i, j].isnan() else float(table[i, j])}
        for i, x in enumerate(ours)
        for j, y in enumerate(theirs)
    ]


MAP_MANY = 500  # samples of a map: more would hide one another


def map_rows(before: Table, after: Table, split: Split, seed: int) -> list[Row]:
    """Up to 500 samples on two planes that both models share: principal components and t-SNE of the union (RIFT paper Fig. 4,
    RepSim paper Fig. 4); one row per sample and model. Nothing where the feature dimensions differ.
    """
    from sklearn.manifold import TSNE

    from riftcli.functional.overlap import pca_map

    if before.features.shape[1] != after.features.shape[1] or len(split) < 4:
        return []
    count = min(len(split), MAP_MANY)
    kept = torch.randperm(len(split), generator=torch.Generator().manual_seed(seed))[:count].sort().values
    plane = pca_map(before.features, after.features)  # of all samples
    union = torch.cat([before.features[kept], after.features[kept]]).numpy()
    spots = TSNE(2, perplexity=min(30, (len(union) - 1) / 3), init="pca", random_state=seed).fit_transform(union)
    rows = []
    for which, pca, tsne in (("before", plane.before[kept], spots[:count]), ("after", plane.after[kept], spots[count:])):
        for i, sample in enumerate(kept.tolist()):
            rows.append(
                {
                    "id": split.ids[sample],
                    "class": split.classes[int(split.targets[sample])] if split.task == "multiclass" else None,
                    "when": which,
                    "pca_x": float(pca[i, 0]),
                    "pca_y": float(pca[i, 1]),
                    "tsne_x": float(tsne[i, 0]),
                    "tsne_y": float(tsne[i, 1]),
                }
            )
    return rows


def _layers(loaded: Loaded, split: Split, source: DataSet, encoder: Encoder) -> list[torch.Tensor]:
    split = inputs.with_pixels(split, source.input, loaded.preprocessing, encoder.console)
    transform = EvalTransform(loaded.preprocessing)
    batches = eval_loader(split, transform, encoder.batch_size, encoder.workers, dist.rank(), dist.world_size())
    with encoder.console.progress("layers", len(split)) as bar:
        return encode_layers(loaded.classifier, batches, loaded.preprocessing, encoder.device, bar.advance)
