"""A running average of the weights, which is validated and kept in their place."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


class WeightAverage:
    """Exponential moving average of what trains: average <- d * average + (1 - d) * w after every optimizer step.

    d = min(decay, (1 + t) / (10 + t)) at step t from 1, so that a short run is not held at its start (the rule of TensorFlow's
    ExponentialMovingAverage). Running statistics of normalisation are averaged with them. The gradient, the regularizer and the
    optimizer see the weights themselves.
    """

    def __init__(self, vit: Any, decay: float) -> None:
        self.decay = decay
        self._weights: dict[str, torch.Tensor] = {name: p for name, p in vit.named_parameters() if p.requires_grad}
        for name, module in vit.named_modules():
            if getattr(module, "running_mean", None) is not None:
                self._weights |= {f"{name}.running_mean": module.running_mean, f"{name}.running_var": module.running_var}
        self._average = {name: p.detach().clone() for name, p in self._weights.items()}

    @classmethod
    def of(cls, vit: Any, decay: float | None) -> WeightAverage | None:
        """None where none is wanted."""
        return None if decay is None else cls(vit, decay)

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """Move the average towards the weights; step: number of optimizer steps so far, this one included."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self._average.values()), list(self._weights.values()), 1 - decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The network with the average as its weights; afterwards they are what they were, bit for bit."""
        own = {name: weight.detach().clone() for name, weight in self._weights.items()}
        self._put(self._average)
        try:
            yield
        finally:
            self._put(own)

    @torch.no_grad()
    def _put(self, values: dict[str, torch.Tensor]) -> None:
        for name, weight in self._weights.items():
            weight.copy_(values[name])

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The average."""
        return dict(self._average)

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Inverse of state_dict."""
        self._average = {name: state[name].to(weight) for name, weight in self._weights.items()}  # in this order
