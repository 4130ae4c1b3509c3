"""RIFT paper Proposition A3.3: rotations between the layers of a linear network can raise its spectral norm.

python experiments/spectral_norm.py [--out DIR] [--seeds 100]        (some seconds)

The network is a product of `depth` matrices. Three ways to put rotations between them: random ones, those that line up each
layer's strongest direction with the next one's (the constructive half of the proof: then the norm is the product of the layers'
norms), and one rotation behind the last layer, which is what RIFT allows. Ratio of the norm to that of the network as it is. The
proposition speaks of pretrained networks; here singular vectors are random, spectra decay, and how far the strongest directions
are aligned before is swept.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from figures import axes, options, rotation, spread, write

DIM, DEPTH = 32, 6
ALIGNED = (0.0, 0.5, 0.9, 1.0)  # share of each layer's strongest direction that meets the next one's


def layers(generator: torch.Generator, share: float) -> list[torch.Tensor]:
    """W_1 .. W_depth, (DIM, DIM), rows times matrices; singular values 1, 1/2, 1/3, ...

    share: cosine between the strongest output direction of a layer and the strongest input direction of the next.
    """
    values = 1 / torch.arange(1, DIM + 1, dtype=torch.float64)
    found, leaving = [], None
    for _ in range(DEPTH):
        left, right = rotation(DIM, generator), rotation(DIM, generator)
        if leaving is not None:
            left = _towards(left, leaving, share)
        found.append(left @ torch.diag(values) @ right.T)
        leaving = right[:, 0]
    return found


def _towards(basis: torch.Tensor, direction: torch.Tensor, share: float) -> torch.Tensor:
    """The basis turned so that the cosine of its first vector to `direction` is `share`."""
    other = basis[:, 1] - direction * (direction @ basis[:, 1])
    wanted = share * direction + (1 - share**2) ** 0.5 * other / other.norm()
    start = basis[:, 0]
    mirror = start - wanted
    if float(mirror.norm()) < 1e-12:
        return basis
    mirror = mirror / mirror.norm()
    return basis - 2 * torch.outer(mirror, mirror @ basis)


def norm(parts: list[torch.Tensor], turns: list[torch.Tensor]) -> float:
    """Largest singular value of W_1 Q_1 W_2 Q_2 ...; a missing rotation is the identity."""
    product = torch.eye(DIM, dtype=torch.float64)
    for place, part in enumerate(parts):
        product = product @ part
        if place < len(turns):
            product = product @ turns[place]
    return float(torch.linalg.matrix_norm(product, 2))


def lined_up(parts: list[torch.Tensor]) -> list[torch.Tensor]:
    """Rotations that carry the strongest output direction of each layer to the strongest input direction of the next."""
    found = []
    for one, other in zip(parts[:-1], parts[1:], strict=True):
        leaving, entering = torch.linalg.svd(one).Vh.T, torch.linalg.svd(other).U
        found.append(leaving @ entering.T)
    return found


def run(out: Path, seeds: int) -> dict[str, Any]:
    """Every degree of alignment over all seeds; writes the JSON and the figure."""
    table: dict[str, Any] = {}
    ratios: dict[float, dict[str, list[float]]] = {}
    for share in ALIGNED:
        found: dict[str, list[float]] = {"random": [], "lined up": [], "last layer alone": []}
        for seed in range(seeds):
            generator = torch.Generator().manual_seed(seed)
            parts = layers(generator, share)
            start = norm(parts, [])
            turns = [rotation(DIM, generator) for _ in range(DEPTH)]
            found["random"].append(norm(parts, turns[:-1]) / start)
            found["lined up"].append(norm(parts, lined_up(parts)) / start)
            eye = torch.eye(DIM, dtype=torch.float64)
            found["last layer alone"].append(norm(parts, [eye] * (DEPTH - 1) + turns[-1:]) / start)
        ratios[share] = found
        table[str(share)] = {
            name: {**spread(values), "raised": sum(v > 1 + 1e-9 for v in values) / seeds} for name, values in found.items()
        }
    result = {"norm / norm before": table, "settings": {"seeds": seeds, "dim": DIM, "depth": DEPTH, "torch": torch.__version__}}
    figure, axis = axes(1, 1, (6, 3.6))
    for name, colour in (("lined up", "#d62728"), ("random", "#1f77b4"), ("last layer alone", "#2ca02c")):
        means = [table[str(share)][name]["mean"] for share in ALIGNED]
        axis.plot(ALIGNED, means, marker="o", color=colour, label=name)
    axis.set_yscale("log")
    axis.axhline(1, color="grey", linewidth=0.6)
    axis.set_xlabel("how far the layers are aligned before")
    axis.set_ylabel("spectral norm / before")
    axis.legend(fontsize=8)
    write(out, "spectral_norm", result, figure)
    return result


if __name__ == "__main__":
    given = options(__doc__, 100).parse_args()
    run(given.out, given.seeds)
