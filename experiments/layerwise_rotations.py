"""RIFT paper Fig. 3: rotations of every layer against a rotation of the last features alone, in deep networks.

python experiments/layerwise_rotations.py [--out DIR] [--seeds 10] [--depth 6]        (half a minute)

Two Gaussian classes, a network of `depth` layers (linear, or with ReLU) that learns to tell them apart. Then the outputs of the
first k layers are multiplied by independent random orthogonal matrices, or the last features alone by one. CKA of the last
features to those before, and accuracy of a linear classifier that is fitted again to them (least squares, training data), on test
data.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from figures import axes, options, rotation, spread, write
from torch import nn

from riftcli.functional.cka import cka

DIM, WIDTH, SEPARATION = 32, 32, 0.8


def gaussians(count: int, seed: int, centre: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(n, DIM) around +centre and -centre with a covariance that is not round, labels (n,) of -1 and 1."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(2, (count,), generator=generator) * 2.0 - 1
    stretch = torch.logspace(0.3, -0.7, DIM, dtype=torch.float64)
    noise = torch.randn(count, DIM, generator=generator, dtype=torch.float64) * stretch
    return labels[:, None] * centre + noise, labels.double()


def network(depth: int, seed: int) -> nn.ModuleList:
    """`depth` layers of width WIDTH and a head."""
    torch.manual_seed(seed)
    widths = [DIM, *[WIDTH] * depth]
    layers = [nn.Linear(one, other, bias=False) for one, other in zip(widths[:-1], widths[1:], strict=True)]
    return nn.ModuleList([*layers, nn.Linear(WIDTH, 1)]).double()


def features(layers: nn.ModuleList, rows: torch.Tensor, relu: bool, turns: dict[int, torch.Tensor]) -> torch.Tensor:
    """(n, DIM) -> (n, WIDTH), the last before the head; turns: layer -> what its output is multiplied by."""
    for place, layer in enumerate(layers[:-1]):
        rows = layer(rows)
        if relu:
            rows = rows.relu()
        if place in turns:
            rows = rows @ turns[place]
    return rows


def train(layers: nn.ModuleList, rows: torch.Tensor, labels: torch.Tensor, relu: bool) -> None:
    """Adam at 1e-3, 300 steps on all data, logistic loss."""
    optimizer = torch.optim.Adam(layers.parameters(), lr=1e-3)
    for _ in range(300):
        loss = nn.functional.softplus(-labels * layers[-1](features(layers, rows, relu, {})).flatten()).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def refitted_accuracy(train_rows: torch.Tensor, train_labels: torch.Tensor, rows: torch.Tensor, labels: torch.Tensor) -> float:
    """Of the least-squares classifier with an offset."""
    one = torch.cat([train_rows, torch.ones(len(train_rows), 1, dtype=train_rows.dtype)], 1)
    solution = torch.linalg.lstsq(one, train_labels[:, None], driver="gelsd").solution
    scores = torch.cat([rows, torch.ones(len(rows), 1, dtype=rows.dtype)], 1) @ solution
    return float((scores.flatten().sign() == labels).double().mean())


@torch.no_grad()
def measure(layers: nn.ModuleList, data: Any, relu: bool, depth: int, seed: int) -> dict[str, Any]:
    """CKA and accuracy of the first 0..depth layers turned, and of the last features alone."""
    (rows, labels), (test, truth) = data
    generator = torch.Generator().manual_seed(seed + 1000)
    turns = {place: rotation(WIDTH, generator) for place in range(depth)}
    before = features(layers, test, relu, {})
    found: dict[str, Any] = {}
    cases = {str(k): {place: turns[place] for place in range(k)} for k in range(depth + 1)}
    for name, chosen in {**cases, "last": {depth - 1: turns[depth - 1]}}.items():
        after = features(layers, test, relu, chosen)
        accuracy = refitted_accuracy(features(layers, rows, relu, chosen), labels, after, truth)
        found[name] = {"cka": cka(before, after), "accuracy": accuracy}
    return found


def run(out: Path, seeds: int, depth: int) -> dict[str, Any]:
    """Linear and ReLU networks over all seeds; writes the JSON and the figure."""
    found: dict[str, list] = {"linear": [], "relu": []}
    for seed in range(seeds):
        centre = torch.randn(DIM, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        centre *= SEPARATION / centre.norm()
        data = gaussians(2000, 2 * seed, centre), gaussians(1000, 2 * seed + 1, centre)
        for kind, own in found.items():
            layers = network(depth, seed)
            train(layers, *data[0], kind == "relu")
            own.append(measure(layers, data, kind == "relu", depth, seed))
    table = {
        kind: {name: {key: spread([one[name][key] for one in own]) for key in own[0][name]} for name in own[0]}
        for kind, own in found.items()
    }
    result = {"networks": table, "settings": {"seeds": seeds, "depth": depth, "width": WIDTH, "torch": torch.__version__}}
    figure, grid = axes(1, 2, (9, 3.6))
    for axis, key, title in zip(
        grid, ("cka", "accuracy"), ("CKA of the last features", "accuracy, head fitted again"), strict=True
    ):
        for kind, colour in (("linear", "#1f77b4"), ("relu", "#d62728")):
            points = [table[kind][str(k)][key] for k in range(depth + 1)]
            means, stds = ([p[name] for p in points] for name in ("mean", "std"))
            axis.errorbar(range(depth + 1), means, stds, color=colour, marker="o", label=f"{kind}, first k layers")
            last = table[kind]["last"][key]
            axis.errorbar(
                [depth], [last["mean"]], [last["std"]], color=colour, marker="*", markersize=14, label=f"{kind}, last alone"
            )
        axis.set_xlabel("layers that are turned")
        axis.set_title(title, fontsize=10)
    grid[0].legend(fontsize=8)
    write(out, "layerwise_rotations", result, figure)
    return result


if __name__ == "__main__":
    parser = options(__doc__, 10)
    parser.add_argument("--depth", type=int, default=6)
    given = parser.parse_args()
    run(given.out, given.seeds, given.depth)
