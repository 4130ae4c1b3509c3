"""How alike two models see the same images: what `rift similarity` does (RIFT paper Tables 1 and 4, similarity-space paper)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from riftcli import catalog, dist
from riftcli.console import Stopwatch
from riftcli.data.loader import eval_loader
from riftcli.data.reading import sift, with_pixels
from riftcli.data.split import Split
from riftcli.data.transforms import EvalTransform
from riftcli.errors import DataError, UsageError, did_you_mean
from riftcli.evaluation.candidates import Candidate, LoadedModel, bases_of
from riftcli.evaluation.data_sets import EvalData, list_split
from riftcli.evaluation.encoder import Encoder
from riftcli.evaluation.features import FeatureTable
from riftcli.evaluation.layer_features import encode_layers, layer_names
from riftcli.functional.cka import cka_table
from riftcli.functional.precision import full_precision
from riftcli.functional.thinning import thinned
from riftcli.protocols import Metric, Predictions
from riftcli.runs.provenance import environment
from riftcli.runs.result_table import Column, ResultTable, Row, where

DEFAULT = ["cka", "cka_debiased", "cka_rbf", "rsa", "rsa_spearman", "procrustes", "svcca", "mutual_knn", "effective_rank"]


def measures() -> list[str]:
    """Names of the metrics that compare two models."""
    metrics: dict[str, Any] = {name: catalog.component("metric", name) for name in catalog.names("metric")}
    return [name for name, metric in metrics.items() if metric.needs_pretrained]


@dataclass(frozen=True)
class Similarity:
    """How alike two models see the same images (RIFT paper Tables 1 and 4, similarity-space paper).

    metrics: names of similarity metrics. split: train, val, test, or any split of the data source. all_layers: also CKA of
    every layer with every layer. intervals: random halves, drawn with `seed`, that the spread of every measure is estimated
    from where there are no more than 500 images, and of more only where what each of them adds to the value is not known;
    0 for none.
    maps: also where every sample lies on a plane, before and after (PCA and t-SNE). against: the other
    model; null is the one that each candidate was finetuned from.
    """

    metrics: tuple[str, ...] = tuple(DEFAULT)
    split: str = "test"
    all_layers: bool = False
    intervals: int = 30
    seed: int = 0
    maps: bool = False
    against: Candidate | None = None

    plot: ClassVar[str] = "riftcli.report.plots.heat_map:plot_similarity"

    def __post_init__(self) -> None:
        known = measures()
        for name in self.metrics:
            if name not in known:
                raise UsageError(f"--metrics {name}: no such similarity{did_you_mean(name, known)}; one of: {', '.join(known)}")

    def measure(self, candidates: Sequence[Candidate], data: Sequence[EvalData], encoder: Encoder) -> ResultTable:
        """Every measure of every model against the other one; collective. Both see the same samples, each through its own
        transform.
        """
        clock = Stopwatch()
        rows: list[Row] = []
        tables: dict[str, list[Row]] = {"layers": [], "map": []}
        entries: dict[str, dict[str, Any]] = {}
        kept: dict[tuple[str, str], _Seen] = {}  # the other model is encoded once for all its runs
        starts = {} if self.against else bases_of(candidates)
        for candidate in candidates:
            other = self.against or starts[candidate.label]
            loaded = candidate.load(encoder.device)
            entries[candidate.label] = candidate.entry(loaded)
            for source in data:
                split, _ = sift(list_split(source, self.split), source.input, encoder.console)
                after = self._seen(candidate, loaded, split, source, encoder)
                key = (other.identity, source.name)
                if key not in kept:
                    base = other.load(encoder.device)
                    entries.setdefault(other.label, other.entry(base))
                    kept[key] = self._seen(other, base, split, source, encoder)
                    del base
                facts = _facts(candidate, other, source, split)
                self._compare(kept[key], after, split, facts, rows, tables, encoder)
        env = environment(encoder.device, encoder.precision, dist.world_size(), self.seed)
        settings = {"metrics": list(self.metrics), "split": self.split, "intervals": self.intervals}
        filled = {name: table for name, table in tables.items() if table}
        return ResultTable("similarity", settings, list(entries.values()), rows, env, filled, clock.seconds)

    def _seen(self, model: Candidate, loaded: LoadedModel, split: Split, source: EvalData, encoder: Encoder) -> _Seen:
        table = encoder.encode(loaded, split, source.input, f"{source.name} with {model.label}")
        return _Seen(table, _layers(loaded, split, source, encoder) if self.all_layers else None, tuple(split.ids))

    def _compare(
        self,
        before: _Seen,
        after: _Seen,
        split: Split,
        facts: Row,
        rows: list[Row],
        tables: dict[str, list[Row]],
        encoder: Encoder,
    ) -> None:
        """Add what one pair of models has to say on one split."""
        if before.ids != after.ids:
            raise DataError(
                f"{facts['model']} and {facts['reference']}: not the same samples of {facts['data']}; similarity needs the same "
                "images in the same order"
            )
        count = len(set(self.metrics)) * (1 + self.intervals)
        with encoder.console.progress(f"{facts['model']}, {len(self.metrics)} measures", count) as bar:
            found = compare(before.table, after.table, split, self, encoder.device, bar.advance) if dist.is_main() else []
        cells = []
        if dist.is_main() and before.layers is not None and after.layers is not None:
            cells = layer_rows(before.layers, after.layers, _place(encoder.device))
        found, cells = dist.broadcast_object((found, cells))
        rows += [{**facts, **row} for row in found]
        tables["layers"] += [{**facts, **cell} for cell in cells]
        if self.maps and dist.is_main():
            tables["map"] += [{**facts, **point} for point in map_rows(before.table, after.table, split, self.seed)]

    @classmethod
    def columns(cls, rows: Sequence[Row], here: tuple[str, str]) -> Iterator[Column]:
        """What a comparison of runs shows of the rows of one run; here: data and split that the run itself reports on."""
        for row in rows:
            if str(row["reference"]).startswith("pretrained"):
                metric: Any = catalog.component("metric", row["metric"])
                yield f"{row['metric']} {where(row, here, {})}".strip(), row["value"], metric.higher_is_better


@dataclass(frozen=True)
class _Seen:
    """A split through one model: features, layers where they are asked for, and which samples."""

    table: FeatureTable
    layers: list[torch.Tensor] | None
    ids: tuple[str, ...]


def _facts(candidate: Candidate, other: Candidate, source: EvalData, split: Split) -> Row:
    return {
        "model": candidate.label,
        "group": candidate.group,
        "reference": other.label,
        "data": source.name,
        "split": split.name,
        "n": len(split),
    }


def compare(
    before: FeatureTable,
    after: FeatureTable,
    split: Split,
    options: Similarity,
    device: torch.device | None = None,
    tick: Callable[[int], None] = lambda n: None,
) -> list[Row]:
    """One row per measure: value, interval of 95 % and what it covers, and what the measure says beside it.

    interval: "population", the value with any number of images, or "this n", the value that so many others of them would have:
    measures that depend on the number of images have no other. device: where it is computed, by default on the CPU; what
    measures share is computed once. tick: told of every step, of 1 + intervals for each measure.
    """
    device = _place(device or torch.device("cpu"))
    targets = torch.from_numpy(split.targets)
    whole = Predictions(after.logits, targets, after.features, split.classes, split.task, before.features, device=device)
    metrics: dict[str, Metric] = {name: catalog.component("metric", name)() for name in options.metrics}
    entries, errors = {}, {}
    with full_precision(device):
        for name, metric in metrics.items():
            entries[name], errors[name] = _with_error(metric, whole, options)
            tick(1)
        left = {k: metric for k, metric in metrics.items() if errors[k] is None and entries[k]["value"] is not None}
        tick((len(metrics) - len(left)) * options.intervals)
        errors |= half_sample_spreads(left, whole, options.intervals, options.seed, tick)
    return [_row(name, metrics[name], entries[name], errors[name]) for name in metrics]


def _place(device: torch.device) -> torch.device:
    """Where models are compared: Apple's GPUs have no fp64."""
    return torch.device("cpu") if device.type == "mps" else device


def _row(name: str, metric: Metric, entry: dict[str, Any], error: float | None) -> Row:
    low, high = (None, None) if error is None else (entry["value"] - 1.96 * error, entry["value"] + 1.96 * error)
    beside = {k: v for k, v in entry.items() if k not in ("value", "reference")}
    covers = None if error is None else "population" if getattr(metric, "of_population", False) else "this n"
    return {"metric": name, "value": entry["value"], "low": low, "high": high, "interval": covers, "details": beside}


HALVES = 500  # samples up to which the spread is that of random halves; from here on what each one adds tells it as well


def _with_error(metric: Metric, seen: Predictions, options: Similarity) -> tuple[dict[str, Any], float | None]:
    """A measure and its standard error; None for one that is not wanted or undefined, and where random halves have to tell: of
    few samples, and where a measure does not know what each sample adds to it.
    """
    used = len(thinned(len(seen.targets), getattr(metric, "at_most", None)))
    if options.intervals < 2 or used <= HALVES:
        return metric.compute(seen), None
    if hasattr(metric, "with_error"):
        return metric.with_error(seen)
    entry = metric.compute(seen)
    if entry["value"] is None or not hasattr(metric, "spread_of_halves"):
        return entry, None
    return entry, metric.spread_of_halves(seen, options.intervals, options.seed)


def half_sample_spreads(
    metrics: Mapping[str, Metric], seen: Predictions, draws: int, seed: int, tick: Callable[[int], None] = lambda n: None
) -> dict[str, float | None]:
    """Standard errors of measures from random halves of the samples: for halves, the delete-d jackknife needs no factor (Shao
    and Wu 1989). The ordinary bootstrap draws samples twice, and a copy is its own nearest neighbour at distance 0.

    All measures see the same halves, and share what they make of them. None without draws, or where a half is undefined.
    """
    found: dict[str, float | None] = dict.fromkeys(metrics)
    used = {name: thinned(len(seen.targets), getattr(metric, "at_most", None)) for name, metric in metrics.items()}
    for n in sorted({len(samples) for samples in used.values()}):
        own = {name: metrics[name] for name in metrics if len(used[name]) == n}
        samples = next(used[name] for name in own)  # what the value itself was computed from
        values: dict[str, list[float | None]] = {name: [] for name in own}
        generator = torch.Generator().manual_seed(seed)
        if draws < 2 or n < 8:
            tick(draws * len(own))
            continue
        for _ in range(draws):
            half = _rows(seen, samples[torch.randperm(n, generator=generator)[: n // 2].sort().values])
            for name, metric in own.items():
                values[name].append(metric.compute(half)["value"])
                tick(1)
        found |= {name: _spread(drawn) for name, drawn in values.items()}
    return found


def _rows(seen: Predictions, kept: torch.Tensor) -> Predictions:
    assert seen.pretrained is not None
    features = seen.features[kept], seen.pretrained[kept]
    return Predictions(
        seen.logits[kept], seen.targets[kept], features[0], seen.classes, seen.task, features[1], device=seen.device
    )


def _spread(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(torch.tensor(known, dtype=torch.float64).std()) if known and len(known) == len(values) else None


def layer_rows(before: list[torch.Tensor], after: list[torch.Tensor], device: torch.device) -> list[Row]:
    """The cells of the layer x layer table as rows."""
    with full_precision(device):
        table = cka_table(before, after, device)
    ours, theirs = layer_names(len(before)), layer_names(len(after))
    return [
        {"reference_layer": x, "layer": y, "cka": None if table[i, j].isnan() else float(table[i, j])}
        for i, x in enumerate(ours)
        for j, y in enumerate(theirs)
    ]


MAP_MANY = 500  # samples of a map: more would hide one another


def map_rows(before: FeatureTable, after: FeatureTable, split: Split, seed: int) -> list[Row]:
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


def _layers(loaded: LoadedModel, split: Split, source: EvalData, encoder: Encoder) -> list[torch.Tensor]:
    split = with_pixels(split, source.input, loaded.preprocessing, encoder.console)
    transform = EvalTransform(loaded.preprocessing)
    batches = eval_loader(split, transform, encoder.batch_size, encoder.workers, dist.rank(), dist.world_size())
    with encoder.console.progress("layers", len(split)) as bar:
        return encode_layers(loaded.classifier, batches, loaded.preprocessing, encoder.device, bar.advance)
