"""What `rift similarity` costs with intervals: every default measure of 16,000 x 768 features, process time of one core.

python benchmarks/similarity.py [--images 16000] [--dim 768] [--alone]
python benchmarks/similarity.py --layers [--images 1000]    # instead: the table of 13 x 13 layers
python benchmarks/similarity.py --errors    # instead: are the standard errors right?
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch

from riftcli import catalog
from riftcli.data.split import Split
from riftcli.evaluation.evaluators.similarity import DEFAULT, Similarity, compare, half_sample_spreads
from riftcli.evaluation.features import FeatureTable
from riftcli.functional.cka import cka_table
from riftcli.functional.influence import cka_error, rank_ratio_error
from riftcli.functional.paired import Paired
from riftcli.protocols import Predictions

CLASSES = 100


def split_of(targets: torch.Tensor) -> Split:
    names = [str(i) for i in range(len(targets))]
    return Split("test", names, targets.numpy(), [str(i) for i in range(CLASSES)], read=lambda i: i)


def main(count: int, dim: int, alone: bool) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    targets = torch.arange(count) % CLASSES
    before = torch.randn(CLASSES, dim)[targets] + torch.randn(count, dim) * torch.linspace(3, 0.1, dim)
    after = before + 0.7 * torch.randn(count, dim)
    split = split_of(targets)
    tables = [FeatureTable(features, torch.zeros(count, CLASSES)) for features in (before, after)]
    compare(*(FeatureTable(t.features[:50], t.logits[:50]) for t in tables), split_of(targets[:50]), Similarity())  # imports
    for intervals in (0, 30):
        began = time.process_time()
        compare(*tables, split, Similarity(intervals=intervals))
        took = time.process_time() - began
        print(f"all measures of {count:,} x {dim}, {intervals} halves: {took:.1f} s" + ", target <= 10" * (intervals > 0))
    for name in DEFAULT if alone else ():
        began = time.process_time()
        (row,) = compare(*tables, split, Similarity((name,)))
        print(f"{name} alone, with its interval: {row['value']:.6f}, {time.process_time() - began:.2f} s")


def layers(count: int, dim: int) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    before = [torch.randn(count, dim) + 1 for _ in range(13)]
    after = [rows + 0.5 * torch.randn(count, dim) for rows in before]
    began = time.process_time()
    cka_table(before, after)
    print(f"13 x 13 layers of {count:,} x {dim}: {time.process_time() - began:.1f} s")


def errors(count: int, dim: int, flat: bool, draws: int = 60) -> None:
    """The standard error by each image's influence, and by random halves, over the spread of the value over draws of as many
    images from one population.
    """
    torch.manual_seed(0)
    centres, scale = torch.randn(20, dim), torch.ones(dim) if flat else torch.logspace(0.5, -1.5, dim)
    influences: dict[str, Any] = {"cka": cka_error, "cka_debiased": cka_error, "effective_rank": rank_ratio_error}
    metrics = {name: catalog.component("metric", name)() for name in DEFAULT}
    known = {name: metric for name, metric in metrics.items() if hasattr(metric, "with_error")}
    values: dict[str, list[float]] = {name: [] for name in known}
    found, halves = dict.fromkeys(known, 0.0), dict.fromkeys(known, 0.0)
    for draw in range(draws):
        x = (centres[torch.randint(20, (count,))] + torch.randn(count, dim)) * scale
        y = x + 0.5 * scale * torch.randn(count, dim)
        seen = Predictions(torch.zeros(count, 1), torch.zeros(count).long(), y + 0.3, ["a"], "multiclass", x + 0.3)
        for name, metric in known.items():
            entry, error = metric.with_error(seen)
            values[name].append(entry["value"])
            own = influences.get(name)  # also where the metric would not ask for it
            found[name] += (own(Paired(seen.pretrained, seen.features)) if own else error) / draws
        if draw < 5:
            for name, error in half_sample_spreads(known, seen, 20, draw).items():
                halves[name] += error / 5
    for name, drawn in values.items():
        spread = float(torch.tensor(drawn).std())
        kind = "all directions alike" if flat else "few directions"
        print(f"{count} x {dim}, {kind}, {name}, over the spread: {found[name] / spread:.2f}, halves {halves[name] / spread:.2f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=16_000)
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--alone", action="store_true", help="also every measure by itself")
    parser.add_argument("--layers", action="store_true", help="the table of layers")
    parser.add_argument("--errors", action="store_true", help="are the standard errors right?")
    arguments = parser.parse_args()
    if arguments.layers:
        layers(arguments.images, arguments.dim)
    elif arguments.errors:
        for count, dim in ((500, 384), (1000, 384), (1000, 250), (500, 125), (520, 768)):
            for flat in (False, True):
                errors(count, dim, flat)
    else:
        main(arguments.images, arguments.dim, arguments.alone)
