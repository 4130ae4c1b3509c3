"""A regularizer that compares a batch with the pretrained features of the same samples, and has no state of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


class PairedPenalty:
    """strength * term(features, pretrained), fp32 outside autocast; (n, D), (n, D) -> ()."""

    needs_pretrained = True
    lr_scale = 1.0

    def __init__(
        self,
        strength: float,
        term: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
        debiased_cka: bool = False,
        dim: int | None = None,
    ) -> None:
        self.strength, self.term, self.debiased_cka, self.dim = strength, term, debiased_cka, dim

    def loss(self, features: torch.Tensor, pretrained: torch.Tensor | None) -> torch.Tensor:
        """The weighted term; (n, D), (n, D) -> ()."""
        assert pretrained is not None, "this regularizer needs the pretrained features of the batch"
        import torch

        with torch.autocast(features.device.type, enabled=False):
            return self.strength * self.term(features.float(), pretrained.float())

    def diagnostics(self, features: torch.Tensor, pretrained: torch.Tensor | None) -> dict[str, float]:
        """CKA of the batch, and what became of the spectrum against the same samples' pretrained features.

        Of the last `dim` columns, where the term compares several depths: those are the features before the head.
        """
        import torch

        from riftcli.functional.cka import linear_cka
        from riftcli.functional.covariance import centre, effective_rank, eigenvalues

        assert pretrained is not None
        with torch.no_grad():
            first = 0 if self.dim is None else -self.dim
            features, pretrained = features[:, first:].float(), pretrained[:, first:].float()
            spectrum, spectrum_0 = eigenvalues(centre(features)), eigenvalues(centre(pretrained))
            values = [
                linear_cka(pretrained, features, debiased=self.debiased_cka),
                spectrum.sum() / spectrum_0.sum().clamp_min(1e-30),
                effective_rank(spectrum),
            ]
            return dict(zip(["batch_cka", "trace_ratio", "effective_rank"], torch.stack(values).tolist(), strict=True))

    def parameters(self) -> list[torch.nn.Parameter]:
        """None of its own."""
        return []

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Nothing to save."""
        return {}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Nothing to restore."""
