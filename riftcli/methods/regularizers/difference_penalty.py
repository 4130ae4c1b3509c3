"""The average vector loss bound to its running mean."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from riftcli.methods.regularizers.paired_penalty import PairedPenalty

if TYPE_CHECKING:
    import torch


class DifferencePenalty(PairedPenalty):
    """strength * mean of ||u - m||^2; m (D,) is part of the state and the same on every rank. config: a DifferenceVector."""

    def __init__(self, config: Any, mean: torch.Tensor) -> None:
        super().__init__(config.strength, self._average_vector_loss)
        self.config, self.mean = config, mean

    def _moved(self, differences: torch.Tensor) -> torch.Tensor:
        return self.config.decay * self.mean + (1 - self.config.decay) * differences.detach().mean(0)

    def _average_vector_loss(self, features: torch.Tensor, pretrained: torch.Tensor) -> torch.Tensor:
        differences, scale = self.config.differences(features, pretrained)
        return (differences - self._moved(differences)).square().sum(1).mean() / scale

    def observe(self, features: torch.Tensor, pretrained: torch.Tensor | None) -> None:
        """Move the running mean by this step's batch (n, D), detached; once a step, after the loss."""
        assert pretrained is not None
        self.mean = self._moved(self.config.differences(features.float(), pretrained.float())[0])

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The running mean."""
        return {"mean": self.mean}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Inverse of state_dict."""
        self.mean = state["mean"].to(self.mean.device)
