"""The head on a backbone: fresh, zero, or fitted to the frozen features, the start that spares the representation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from riftcli.errors import ModelError
from riftcli.functional.thinning import thinned
from riftcli.protocols import ObjectiveFn


def reset_head(vit: Any, num_classes: int, seed: int) -> None:
    """Put a fresh head on the backbone: trunc-normal weights (std 0.02), zero bias, from its own random stream.

    Raises ModelError for a model whose head is not one linear layer on the features: there is then no vector before it.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vit.reset_classifier(num_classes)
        head = vit.get_classifier()
        if not isinstance(head, nn.Linear) or head.in_features != vit.num_features:
            raise ModelError(f"{vit.pretrained_cfg.get('architecture')}: its head is not one linear layer on its features")
        nn.init.trunc_normal_(head.weight, std=0.02)
        nn.init.zeros_(head.bias)


def zero_head(vit: Any) -> None:
    """All-zero head: every class equally likely, and no gradient reaches the backbone in the first step."""
    head = vit.get_classifier()
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)


RIDGES = (1e-1, 3e-2, 1e-2, 3e-3, 1e-3)  # each fit starts where the one before ended
MANY = 100_000  # samples from which the ridge is chosen on so many of them
STEPS, LAST_STEPS = 200, 20  # of L-BFGS; the latter over all samples, where they are many
CELLS = 2**24  # logits at a time


@dataclass(frozen=True)
class _Probe:
    """A linear layer to be fitted: centred rows (N, D) of unit mean square, their targets, and the loss."""

    rows: torch.Tensor
    targets: torch.Tensor
    objective: ObjectiveFn

    def of(self, kept: torch.Tensor) -> _Probe:
        return _Probe(self.rows[kept], self.targets[kept], self.objective)

    def loss(self, weight: torch.Tensor, bias: torch.Tensor, backward: bool = False) -> torch.Tensor:
        """The mean loss, (), in fp64; backward: adds its gradient to those of weight and bias."""
        total = self.objective.weights(self.targets).sum()
        value = torch.zeros((), dtype=torch.float64, device=weight.device)
        size = max(1, CELLS // len(bias))
        for rows, targets in zip(self.rows.split(size), self.targets.split(size), strict=True):
            with torch.set_grad_enabled(backward):
                part = self.objective.losses(rows @ weight.T + bias, targets).sum() / total
            if backward:
                part.backward()
            value += part.detach()
        return value

    def fit(
        self, weight: torch.Tensor, bias: torch.Tensor, ridge: float, steps: int = STEPS, tolerance: float = 1e-6
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Weights (C, D) and bias (C,) that minimise loss + 0.5 * ridge * ||W||^2, from these on; tolerance: of the gradient."""
        weight, bias = (start.clone().requires_grad_(True) for start in (weight, bias))
        solver = torch.optim.LBFGS(
            [weight, bias], max_iter=steps, max_eval=steps * 3 // 2, tolerance_grad=tolerance, line_search_fn="strong_wolfe"
        )

        def closure() -> torch.Tensor:
            solver.zero_grad()
            penalty = 0.5 * ridge * weight.square().sum()
            penalty.backward()
            return self.loss(weight, bias, backward=True) + penalty.detach()

        solver.step(closure)
        return weight.detach(), bias.detach()


def fit_head(vit: Any, features: torch.Tensor, targets: torch.Tensor, objective: ObjectiveFn) -> tuple[float, float]:
    """Fit the head on frozen features, the start that spares the representation; return (mean loss, ridge).

    features (N, D) fp32, targets (N,) or (N, C). L-BFGS in fp32 on the head's device, on centred features of unit mean square;
    the scaling is folded back into the weights. The ridge 0.5 * r * ||W||^2 matters when N is not much larger than D: r is
    picked on every fifth sample of a class, held out, then the head is fitted to all. Of more than 100,000 samples so many,
    evenly spaced, pick the ridge and are fitted to first, and a few steps over all of them follow.
    """
    head = vit.get_classifier()
    device = head.weight.device
    mean = features.mean(0, dtype=torch.float64)
    scale = float(torch.stack([(part.double() - mean).square().mean(1).sum() for part in features.split(8192)]).sum())
    scale = max(1e-12, (scale / len(features)) ** 0.5)
    rows = torch.cat([((part.double() - mean) / scale).float() for part in features.split(8192)])
    every = _Probe(rows.to(device), targets.to(device), objective)
    order = targets.argsort(stable=True) if targets.dim() == 1 else torch.arange(len(targets))
    order = order[thinned(len(order), MANY)]
    some = every if len(order) == len(rows) else every.of(order.to(device))
    place = order if some is every else torch.arange(len(order))
    weight, bias = torch.zeros(head.weight.shape, device=device), torch.zeros(head.out_features, device=device)
    ridge, weight, bias = _choose(some, place[2::5].to(device), weight, bias)
    weight, bias = some.fit(weight, bias, ridge)
    if some is not every:
        weight, bias = every.fit(weight, bias, ridge, LAST_STEPS)
    with torch.no_grad():
        unscaled = weight.double() / scale
        head.weight.copy_(unscaled)
        head.bias.copy_(bias - unscaled @ mean.to(device))
    return float(every.loss(weight, bias)), ridge


def _choose(
    probe: _Probe, held: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor
) -> tuple[float, torch.Tensor, torch.Tensor]:
    """The ridge with the least loss of the samples that are held out (positions), and weights and bias to go on from."""
    inside = torch.ones(len(probe.rows), dtype=torch.bool, device=held.device)
    inside[held] = False
    if len(probe.rows) < 50:
        return RIDGES[2], weight, bias
    fitted, judged, trials = probe.of(inside), probe.of(held), []
    for ridge in RIDGES:
        weight, bias = fitted.fit(weight, bias, ridge, tolerance=1e-4)
        trials.append((float(judged.loss(weight, bias)), ridge, weight, bias))
    _, ridge, weight, bias = min(trials, key=lambda trial: trial[:2])
    return ridge, weight, bias
