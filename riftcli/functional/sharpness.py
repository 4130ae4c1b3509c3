"""How much the loss can rise when all weights move a little: max over ||e||_2 <= rho of L(w + e), minus L(w).

RIFT paper Table 4 (rho = 0.01). The paper does not name the norm or the ascent; the global L2 norm over all weights and one
step along the gradient are the reading that fits its numbers, and both can be changed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import nn

from riftcli.errors import UsageError

Method = Literal["sam", "pga", "random"]


@dataclass(frozen=True)
class Ascent:
    """How the worst weights nearby are sought.

    sam: one step of length rho along the gradient. pga: `steps` projected gradient steps of 2.5 rho / steps, and the sam
    point; then `restarts` times the same from a random point of the sphere. random: `draws` points on the sphere; nearly nothing
    in this many dimensions, a check of the other two. Each is a lower bound of the maximum.
    adaptive: rho bounds ||e / |w|||_2, which does not change when a layer is scaled up and the next one down (ASAM).
    """

    method: Method = "sam"
    rho: float = 0.01
    adaptive: bool = False
    steps: int = 20
    restarts: int = 0
    draws: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.rho < math.inf:
            raise UsageError(f"--rho {self.rho:g}: must be above 0")


@dataclass(frozen=True)
class Sharpness:
    """loss: at the weights; highest: the largest loss that was met, at least `loss`."""

    loss: float
    highest: float
    gradient_norm: float  # ||grad||_2, or || |w| grad || where adaptive; rho times this is the first-order estimate
    visited: int  # points other than the weights themselves

    @property
    def value(self) -> float:
        """The sharpness; never negative."""
        return self.highest - self.loss


Vector = list[torch.Tensor]


def measure(model: nn.Module, evaluate: Callable[[bool], float], ascent: Ascent) -> Sharpness:
    """The sharpness of `model` at its weights, which are the same bits afterwards, whatever happens.

    evaluate(with_gradient): the mean loss of the whole split at the model's current weights, in eval mode; with_gradient
    also leaves its gradient, averaged in the same way, in `.grad` of every parameter. All parameters move, also those that
    finetuning had frozen.
    """
    parameters = [p for p in model.parameters() if p.is_floating_point()]
    with _borrowed(model, parameters) as start:
        scale: Vector = [w.abs() if ascent.adaptive else w.new_ones(()) for w in start]
        base = evaluate(True)
        gradient = _scaled_gradient(parameters, scale)
        norm = _norm(gradient)
        losses = [base]

        def loss_at(offset: Vector, with_gradient: bool = False) -> None:
            _move(parameters, start, offset, scale)
            losses.append(evaluate(with_gradient))

        generator = torch.Generator().manual_seed(ascent.seed)

        def on_sphere() -> Vector:
            noise = [torch.randn(w.shape, generator=generator).to(w) for w in start]
            return _times(noise, ascent.rho / _norm(noise))

        if ascent.method == "random":
            for _ in range(ascent.draws):
                loss_at(on_sphere())
        elif norm > 0:  # at a stationary point there is no direction to go
            loss_at(_times(gradient, ascent.rho / norm))
            if ascent.method == "pga":
                new_gradient = partial(_scaled_gradient, parameters, scale)
                _ascend(ascent, [torch.zeros_like(g) for g in gradient], gradient, loss_at, new_gradient)
                for _ in range(ascent.restarts):
                    point = on_sphere()
                    loss_at(point, True)
                    _ascend(ascent, point, new_gradient(), loss_at, new_gradient)
        worst = max(losses, key=lambda loss: loss if math.isfinite(loss) else math.inf)
        return Sharpness(base, worst, norm, len(losses) - 1)


def _ascend(
    ascent: Ascent,
    offset: Vector,
    gradient: Vector,
    loss_at: Callable[[Vector, bool], None],
    new_gradient: Callable[[], Vector],
) -> None:
    step = 2.5 * ascent.rho / ascent.steps
    for i in range(ascent.steps):
        norm = _norm(gradient)
        if norm == 0:
            return
        offset = [o + g * (step / norm) for o, g in zip(offset, gradient, strict=True)]
        length = _norm(offset)
        if length > ascent.rho:
            offset = _times(offset, ascent.rho / length)
        last = i == ascent.steps - 1
        loss_at(offset, not last)
        if not last:
            gradient = new_gradient()


@contextmanager
def _borrowed(model: nn.Module, parameters: list[nn.Parameter]) -> Iterator[Vector]:
    """A copy of the weights; afterwards they, their gradients and what trains are as before."""
    trained = [p.requires_grad for p in parameters]
    start = [p.detach().clone() for p in parameters]
    training = model.training
    model.eval()
    for p in parameters:
        p.requires_grad_(True)
    try:
        yield start
    finally:
        with torch.no_grad():
            for p, w, was in zip(parameters, start, trained, strict=True):
                p.copy_(w)  # subtracting the offset again would leave rounding errors
                p.grad = None
                p.requires_grad_(was)
        model.train(training)


def _scaled_gradient(parameters: list[nn.Parameter], scale: Vector) -> Vector:
    return [torch.zeros_like(p) if p.grad is None else p.grad * s for p, s in zip(parameters, scale, strict=True)]


def _move(parameters: list[nn.Parameter], start: Vector, offset: Vector, scale: Vector) -> None:
    with torch.no_grad():
        for p, w, o, s in zip(parameters, start, offset, scale, strict=True):
            p.copy_(w + o * s)


def _times(vector: Vector, factor: float) -> Vector:
    return [v * factor for v in vector]


def _norm(vector: Vector) -> float:
    return float(torch.stack([v.double().square().sum() for v in vector]).sum().sqrt())
