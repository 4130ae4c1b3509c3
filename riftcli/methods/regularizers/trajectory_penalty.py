"""Distillation from a moving average of the student, bound to its teacher."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from riftcli.methods.regularizers.pair_penalty import PairTerm
from riftcli.protocols import Pairs

if TYPE_CHECKING:
    import torch


class TrajectoryPenalty(PairTerm):
    """The term and its teacher. config: a TrajectoryDistill.

    attach: after surgery; after_step: once an optimizer step. The teacher's weights and the sum of their shares are its state.
    """

    def __init__(self, config: Any) -> None:
        super().__init__(config.strength, self._distilled, needs_pretrained=True)
        self.config = config
        self.teacher: Any = None
        self._weights: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        self._total_steps, self._mass = 1, 0.0

    def attach(self, vit: torch.nn.Module, total_steps: int) -> None:
        """Start the average at the weights as they are."""
        from riftcli.models.classifier import frozen_copy

        self.teacher = frozen_copy(vit)
        own = self.teacher.state_dict()
        self._weights = {n: (own[n], value) for n, value in vit.state_dict().items() if value.is_floating_point()}
        self._total_steps = total_steps
        self._mass = self._share(0)

    def _share(self, step: int) -> float:
        """Of a step in the average: the density of Beta(beta, beta), up to a constant, in the middle of its stretch."""
        place = (step + 0.5) / (self._total_steps + 1)
        return (place * (1 - place)) ** (self.config.beta - 1)

    def after_step(self, step: int) -> None:
        """Move the teacher; step: how many have been taken."""
        import torch

        if self.config.average == "beta":
            share = self._share(step)
            self._mass += share
            rate = share / self._mass
        elif step % self.config.every:
            return
        else:
            ramp = self.config.ramp * self._total_steps
            risen = min(1.0, step / ramp) if ramp else 1.0
            rate = 1 - (0.05 + (self.config.momentum - 0.05) * risen)
        with torch.no_grad():
            for teacher, student in self._weights.values():
                teacher.lerp_(student, rate)

    def _distilled(self, student: Pairs, teacher: Pairs) -> torch.Tensor:
        from riftcli.functional.contrastive import contrastive_loss, row_distillation

        config, total = self.config, student.images.new_zeros(())
        wanted = teacher.scale * teacher.images @ teacher.texts.T
        if config.rows:
            total = total + config.rows * row_distillation(student.scale * student.images @ student.texts.T, wanted)
        if config.features:
            apart = (student.images - teacher.images).square().mean() + (student.texts - teacher.texts).square().mean()
            total = total + config.features * apart
        if config.cross:
            by_image, by_text = student.images @ teacher.texts.T, teacher.images @ student.texts.T
            both = row_distillation(student.scale * by_image, wanted) + row_distillation(student.scale * by_text, wanted)
            total = total + config.cross * both / 2
        if config.contrast:
            both = contrastive_loss(student.images, teacher.texts, student.scale)
            both = both + contrastive_loss(teacher.images, student.texts, student.scale)
            total = total + config.contrast * both / 2
        return total

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The teacher, and the sum of the shares so far."""
        import torch

        mass = torch.tensor(self._mass, dtype=torch.float64)
        return {"mass": mass, **{f"teacher.{name}": own for name, (own, _) in self._weights.items()}}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Inverse of state_dict."""
        import torch

        self._mass = float(state["mass"])
        with torch.no_grad():
            for name, (own, _) in self._weights.items():
                own.copy_(state[f"teacher.{name}"])
