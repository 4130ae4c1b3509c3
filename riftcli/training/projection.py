"""Selective projection decay: after an optimizer step, weights that were driven away from their start are pulled back."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class SelectiveProjection:
    """Tian et al. 2024 (Adam-SPD), on any optimizer, one tensor at a time.

    With d = w - w_0 before the step and d' after it: where -<gradient, d> < 0, the loss now falls in the direction back to the
    start, and w <- w - strength * max(0, ||d'|| - ||d||) / ||d'|| * d'. A strength of 1 projects w onto the distance that it
    had before. Nothing else is touched, and no second forward pass is needed. The head has no pretrained value and is left out;
    what an adapter inserts starts at its own initial value.
    """

    def __init__(self, vit: Any, strength: float) -> None:
        self.strength = strength
        head = {id(parameter) for parameter in vit.get_classifier().parameters()}
        self._weights = {n: p for n, p in vit.named_parameters() if p.requires_grad and id(p) not in head}
        self._starts = {name: parameter.detach().clone() for name, parameter in self._weights.items()}
        self._before: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    @torch.no_grad()
    def before_step(self) -> None:
        """Look at gradients and distances; call after clipping, before the optimizer."""
        self._before = {}
        for name, weight in self._weights.items():
            if weight.grad is not None:
                offset = weight - self._starts[name]
                self._before[name] = ((weight.grad * offset).sum() > 0, offset.norm())

    @torch.no_grad()
    def after_step(self) -> None:
        """Pull back what the condition chose."""
        for name, (chosen, distance) in self._before.items():
            weight: nn.Parameter = self._weights[name]
            offset = weight - self._starts[name]
            now = offset.norm()
            share = (now - distance).clamp_min(0) / now.clamp_min(1e-30)
            weight.sub_(offset * (self.strength * share * chosen))

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Where the weights started: an inserted factor starts at random."""
        return dict(self._starts)

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Inverse of state_dict."""
        self._starts = {name: start.to(self._weights[name]) for name, start in state.items()}
