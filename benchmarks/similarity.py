"""What `rift similarity` costs with intervals: every default measure of 16,000 x 768 features, process time of one core.

python benchmarks/similarity.py [--images 16000] [--dim 768]
"""

from __future__ import annotations

import argparse
import time

import torch

from riftcli import catalog
from riftcli.data.split import Split
from riftcli.evaluation.evaluators.similarity import DEFAULT, Similarity, compare
from riftcli.evaluation.features import FeatureTable

CLASSES = 100


def main(count: int, dim: int) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    targets = torch.arange(count) % CLASSES
    before = torch.randn(CLASSES, dim)[targets] + torch.randn(count, dim) * torch.linspace(3, 0.1, dim)
    after = before + 0.7 * torch.randn(count, dim)
    split = Split("test", [str(i) for i in range(count)], targets.numpy(), [str(i) for i in range(CLASSES)], read=lambda i: i)
    tables = [FeatureTable(features, torch.zeros(count, CLASSES)) for features in (before, after)]
    total = {0: 0.0, 30: 0.0}
    for name in DEFAULT:
        catalog.component("metric", name)()
        took = {}
        for intervals in (0, 30):
            began = time.process_time()
            (row,) = compare(*tables, split, Similarity((name,), intervals=intervals))
            took[intervals] = time.process_time() - began
            total[intervals] += took[intervals]
        print(f"{name}: {row['value']:.4f}, {took[0]:.2f} s, with intervals {took[30]:.2f} s")
    print(f"all measures of {count:,} x {dim}: {total[0]:.1f} s, with intervals {total[30]:.1f} s, target <= 10")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=16_000)
    parser.add_argument("--dim", type=int, default=768)
    arguments = parser.parse_args()
    main(arguments.images, arguments.dim)
