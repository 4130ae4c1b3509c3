"""The head on a backbone: fresh, zero, or fitted to the frozen features, the start that spares the representation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from riftcli.errors import ModelError


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


RIDGES = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)


def fit_head(
    vit: Any, features: torch.Tensor, targets: torch.Tensor, loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
) -> tuple[float, float]:
    """Fit the head on frozen features, the start that spares the representation; return (mean loss, ridge).

    features (N, D) fp32, targets (N,) or (N, C); `loss` maps logits (N, C) and targets to the mean objective. L-BFGS on
    centred features of unit mean square; the scaling is folded back into the weights. The ridge 0.5 * r * ||W||^2 matters
    when N is not much larger than D: r is picked on every fifth sample, held out, then the head is fitted to all.
    """
    head = vit.get_classifier()
    x = features.double().cpu()
    mean = x.mean(0)
    scale = (x - mean).square().mean().sqrt().clamp_min(1e-12)
    x = (x - mean) / scale
    held = torch.arange(len(x)) % 5 == 0
    trials = []
    for ridge in RIDGES if len(x) >= 50 else RIDGES[2:3]:
        weight, bias = _ridge_fit(x[~held], targets[~held], head.out_features, loss, ridge)
        trials.append((float(loss(x[held] @ weight.T + bias, targets[held])), ridge))
    ridge = min(trials)[1]
    weight, bias = _ridge_fit(x, targets, head.out_features, loss, ridge)
    with torch.no_grad():
        head.weight.copy_(weight / scale)
        head.bias.copy_(bias - (weight / scale) @ mean)
    return float(loss(x @ weight.T + bias, targets)), ridge


def _ridge_fit(
    x: torch.Tensor, targets: torch.Tensor, outputs: int, loss: Any, ridge: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights (C, D) and bias (C,) that minimise loss + 0.5 * ridge * ||W||^2, in fp64."""
    weight = torch.zeros(outputs, x.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(outputs, dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS([weight, bias], max_iter=200, max_eval=300, tolerance_grad=1e-6, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        solver.zero_grad()
        value = loss(x @ weight.T + bias, targets) + 0.5 * ridge * weight.square().sum()
        value.backward()
        return value

    solver.step(closure)
    return weight.detach(), bias.detach()
