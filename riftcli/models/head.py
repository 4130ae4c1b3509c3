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


RIDGES = (1e-1, 3e-2, 1e-2, 3e-3, 1e-3)
SMALL = 2**25  # samples times dimensions times classes, up to which every fit is in fp64, from zero, and to the end
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
            [weight, bias],
            max_iter=steps,
            max_eval=steps * 3 // 2,
            tolerance_grad=tolerance,
            history_size=100 if weight.dtype == torch.float64 else 10,  # steps, each of two copies of the weights
            line_search_fn="strong_wolfe",
        )

        def closure() -> torch.Tensor:
            solver.zero_grad()
            penalty = 0.5 * ridge * weight.square().sum()
            penalty.backward()
            return self.loss(weight, bias, backward=True) + penalty.detach()

        solver.step(closure)
        return weight.detach(), bias.detach()


FIT = 1  # of fits that are kept for other runs: raise it when they come out otherwise


def fit_head(vit: Any, features: torch.Tensor, targets: torch.Tensor, objective: ObjectiveFn) -> tuple[float, float]:
    """Fit the head on frozen features, the start that spares the representation; return (mean loss, ridge).

    features (N, D) fp32, targets (N,) or (N, C). L-BFGS on centred features of unit mean square; the scaling is folded back into
    the weights. The ridge 0.5 * r * ||W||^2 matters when N is not much larger than D: r is picked on every fifth sample, held
    out, then the head is fitted to all. Large problems: in fp32 on the head's device, each ridge from where the last one ended;
    of more than 100,000 samples so many pick the ridge and are fitted to first, and a few steps over all of them follow.
    """
    head = vit.get_classifier()
    exact = features.numel() * head.out_features <= SMALL
    device, dtype = (torch.device("cpu"), torch.float64) if exact else (head.weight.device, torch.float32)
    mean = features.mean(0, dtype=torch.float64)
    squares = torch.stack([(part.double() - mean).square().mean(1).sum() for part in features.split(8192)])
    scale = max(1e-12, float(squares.sum() / len(features)) ** 0.5)
    rows = torch.cat([((part.double() - mean) / scale).to(dtype) for part in features.split(8192)])
    every = _Probe(rows.to(device), targets.to(device), objective)
    by_class = targets.argsort(stable=True) if targets.dim() == 1 else torch.arange(len(targets))
    some = every if len(rows) <= MANY else every.of(by_class[thinned(len(rows), MANY)].to(device))
    zero = torch.zeros(head.weight.shape, device=device, dtype=dtype), torch.zeros(len(head.bias), device=device, dtype=dtype)
    ridge, *found = _choose(some, zero, exact)
    weight, bias = some.fit(*(zero if exact else (found[0], found[1])), ridge)
    if some is not every:
        weight, bias = every.fit(weight, bias, ridge, LAST_STEPS)
    with torch.no_grad():
        unscaled = weight.double() / scale
        head.weight.copy_(unscaled)
        head.bias.copy_(bias - unscaled @ mean.to(device))
    return float(every.loss(weight, bias)), ridge


def _choose(probe: _Probe, zero: tuple[torch.Tensor, torch.Tensor], exact: bool) -> tuple[float, torch.Tensor, torch.Tensor]:
    """The ridge with the least loss of the samples that are held out, and the weights and bias that it gave."""
    if len(probe.rows) < 50:
        return RIDGES[len(RIDGES) // 2], *zero
    held = _held_out(probe.targets)
    fitted, judged, best, (weight, bias) = probe.of(~held), probe.of(held), None, zero
    for ridge in RIDGES:
        start = zero if exact else (weight, bias)
        weight, bias = fitted.fit(*start, ridge, tolerance=1e-6 if exact else 1e-4)
        trial = float(judged.loss(weight, bias)), ridge, weight, bias
        best = trial if best is None or trial[:2] < best[:2] else best
    assert best is not None
    return best[1:]


def _held_out(targets: torch.Tensor) -> torch.Tensor:
    """Every fifth sample, (N,) bool; of classes that take turns every fifth of a class, or all of one would be held out."""
    fifth = torch.arange(len(targets), device=targets.device) % 5 == 0
    if targets.dim() > 1 or len(targets[~fifth].unique()) == len(targets.unique()):
        return fifth
    held = torch.zeros_like(fifth)
    held[targets.argsort(stable=True)[::5]] = True
    return held
