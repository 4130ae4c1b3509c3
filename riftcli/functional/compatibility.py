"""May an old gallery be searched with a new model's queries? The verdict, the gain, and a gallery that is renewed bit by bit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch

Order = Literal["farthest", "random"]


def gain(new_on_old: float, old_on_old: float, new_on_new: float) -> float | None:
    """Share of the new model's advantage that its queries have on the old gallery: (M(n,o) - M(o,o)) / (M(n,n) - M(o,o)).

    1 is as good as renewing the gallery, below 0 is incompatible. None where the new model is no better than the old one.
    """
    advantage = new_on_new - old_on_old
    return None if advantage <= 0 else (new_on_old - old_on_old) / advantage


def difference_interval(
    values: torch.Tensor, base: torch.Tensor, draws: int = 2000, seed: int = 0, level: float = 0.95
) -> tuple[float, float]:
    """Bootstrap interval of the mean of values - base over the same queries; (Q,), (Q,) -> (low, high)."""
    differences = (values.double() - base.double()).cpu()
    generator = torch.Generator().manual_seed(seed)
    means = torch.stack(
        [differences[torch.randint(len(differences), (len(differences),), generator=generator)].mean() for _ in range(draws)]
    )
    tail = (1 - level) / 2
    low, high = torch.quantile(means, torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return low, high


def refill_order(features: torch.Tensor, labels: torch.Tensor, order: Order = "farthest", seed: int = 0) -> torch.Tensor:
    """Which items of a gallery are renewed first; features (G, D) as they stand in it, labels (G,) -> (G,) positions.

    farthest: those farthest from the mean of their class (lambda-orthogonality, section 3.4); random: the control.
    """
    if order == "random":
        return torch.randperm(len(features), generator=torch.Generator().manual_seed(seed))
    distance = features.new_zeros(len(features))
    for label in labels.unique():
        own = labels == label
        distance[own] = torch.linalg.vector_norm(features[own] - features[own].mean(0), dim=1)
    return distance.argsort(descending=True, stable=True).cpu()


def refilled(old: torch.Tensor, new: torch.Tensor, order: torch.Tensor, share: float) -> torch.Tensor:
    """A gallery (G, D) whose first `share` in that order are already new."""
    found = old.clone()
    chosen = order[: round(share * len(order))].to(old.device)
    found[chosen] = new[chosen]
    return found


def area(shares: Sequence[float], values: Sequence[float]) -> float:
    """Mean of a curve over the share that is renewed, by trapezoids; shares ascend from 0 to 1."""
    return float(torch.trapezoid(torch.tensor(values, dtype=torch.float64), torch.tensor(shares, dtype=torch.float64)))
