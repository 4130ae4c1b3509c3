"""L2-SP: the weights stay near where they started."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from riftcli.protocols import RegularizerContext

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class L2sp:
    """strength / 2 * ||w - w_0||^2 over what trains of the backbone + head_strength / 2 * ||w_head||^2 (Li et al. 2018).

    strength: 0.01 was the best of those tried by Kumar et al. 2022 (who leave out the 1/2); the original has 0.1.
    head_strength: on the weights of the head, which have no pretrained value. Ordinary weight decay pulls the other way:
    set optim.weight_decay: 0. With an adapter that inserts parameters, w_0 are their start values.
    """

    strength: float = 0.01
    head_strength: float = 0.01

    def __post_init__(self) -> None:
        if self.strength < 0 or self.head_strength < 0:
            raise ValueError("strength: must be 0 or more, and head_strength too")

    def build(self, context: RegularizerContext) -> L2spPenalty | None:
        """None when both strengths are 0."""
        return None if self.strength == self.head_strength == 0 else L2spPenalty(self)


class L2spPenalty:
    """The bound term. It is a function of the weights, not of a batch, so its gradient is added after backward: the same on
    every rank, and once however many micro-batches there are.
    """

    def __init__(self, config: L2sp) -> None:
        self.config, self.strength = config, config.strength
        self.weights: dict[str, tuple[torch.nn.Parameter, torch.Tensor | None]] = {}  # None: the head, towards zero

    def attach(self, vit: Any) -> None:
        """Remember where every trained weight starts; after surgery, before the first step."""
        head = {id(parameter) for parameter in vit.get_classifier().parameters()}
        for name, parameter in vit.named_parameters():
            if parameter.requires_grad:
                self.weights[name] = (parameter, None if id(parameter) in head else parameter.detach().clone())

    def add_gradient(self) -> torch.Tensor:
        """Add the term's gradient to the weights'; return its value ()."""
        import torch

        total = torch.zeros((), device=next(iter(self.weights.values()))[0].device)
        head = [parameter for parameter, start in self.weights.values() if start is None]
        moved = [(parameter, start) for parameter, start in self.weights.values() if start is not None]
        with torch.no_grad():
            for parameter, _ in self.weights.values():
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
            groups: list[tuple[float, list[Any], Any]] = [(self.config.head_strength, head, head)]
            if moved:
                body, starts = zip(*moved, strict=True)
                groups.append((self.strength, list(body), torch._foreach_sub(body, starts)))
            for alpha, parameters, offsets in groups:
                if parameters:  # a kernel for many tensors, not several for each
                    torch._foreach_add_([parameter.grad for parameter in parameters], offsets, alpha=alpha)
                    total += 0.5 * alpha * torch.stack(torch._foreach_norm(offsets)).square().sum()
        return total

    def diagnostics(self) -> dict[str, float]:
        """How far the backbone has moved, as a Euclidean distance."""
        moved = [(p.detach() - start).square().sum() for p, start in self.weights.values() if start is not None]
        return {"weight_distance": float(sum(moved)) ** 0.5}

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Where the weights started: an inserted factor starts at random."""
        return {name: start for name, (_, start) in self.weights.items() if start is not None}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Inverse of state_dict."""
        for name, start in state.items():
            parameter, _ = self.weights[name]
            self.weights[name] = (parameter, start.to(parameter))
