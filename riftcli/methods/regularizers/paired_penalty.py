"""A regularizer that compares a batch with the pretrained features of the same samples, and has no state of its own."""

from __future__ import annotations

from collections.abc import Callable

import torch

from riftcli.functional.cka import linear_cka
from riftcli.functional.covariance import centre, effective_rank, eigenvalues


class PairedPenalty:
    """weight * term(features, reference), fp32 outside autocast; (n, D), (n, D) -> ()."""

    needs_reference = True
    on_weights = False
    lr_scale = 1.0

    def __init__(
        self, weight: float, term: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], debiased_cka: bool = False
    ) -> None:
        self.weight, self.term, self.debiased_cka = weight, term, debiased_cka

    def loss(self, features: torch.Tensor, reference: torch.Tensor | None) -> torch.Tensor:
        """The weighted term; (n, D), (n, D) -> ()."""
        assert reference is not None, "this regularizer needs the pretrained features of the batch"
        with torch.autocast(features.device.type, enabled=False):
            return self.weight * self.term(features.float(), reference.float())

    @torch.no_grad()
    def diagnostics(self, features: torch.Tensor, reference: torch.Tensor | None) -> dict[str, float]:
        """CKA of the batch, and what became of the spectrum against the same samples' pretrained features."""
        assert reference is not None
        features, reference = features.float(), reference.float()
        spectrum, spectrum_0 = eigenvalues(centre(features)), eigenvalues(centre(reference))
        values = [
            linear_cka(reference, features, debiased=self.debiased_cka),
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
