"""What the covariance forms of RIFT compare with: alpha^2 Q^T Sigma_0 Q, where Q and alpha may train."""

from __future__ import annotations

import torch
from torch import nn

from riftcli.functional import rift_loss
from riftcli.functional.covariance import effective_rank
from riftcli.functional.products import congruence
from riftcli.functional.rotations import CarriedRotation, Rotation, SoftRotation

ONE = 0.5413248546129181  # softplus of it is 1


class Target:
    """alpha^2 Q^T Sigma_0 Q and its parts. sigma_0 (D, D) and mean_0 (D,) fp32, or None where every batch brings its own."""

    def __init__(
        self,
        rotation: Rotation | None,
        sigma_0: torch.Tensor | None,
        mean_0: torch.Tensor | None = None,
        learn_alpha: bool = False,
        device: torch.device | None = None,
    ) -> None:
        device = sigma_0.device if sigma_0 is not None else device
        self.rotation = None if rotation is None else rotation.to(device)
        self.scale = nn.Parameter(torch.tensor(ONE, device=device)) if learn_alpha else None
        self.sigma_0, self.mean_0 = sigma_0, mean_0
        self.bind()

    def bind(self) -> None:
        """Compute what depends on sigma_0 alone."""
        if self.sigma_0 is not None:
            self.norm_0 = self.sigma_0.square().sum()  # ||Sigma_0||_F^2
            self.spectrum_0 = torch.linalg.eigvalsh(self.sigma_0.double()).flip(0).clamp_min(0).float()  # (D,), descending

    def rotate(self, rows: torch.Tensor) -> torch.Tensor:
        """rows @ Q^T; (n, D) -> (n, D)."""
        return rows if self.rotation is None else self.rotation.rotate(rows)

    def alpha(self) -> torch.Tensor | None:
        """A learned scale (), positive; None for 1."""
        return None if self.scale is None else nn.functional.softplus(self.scale)

    def squared(self) -> torch.Tensor:
        """tr(M^2), M = Q^T Sigma_0 Q: constant while Q is orthogonal; ()."""
        assert self.sigma_0 is not None
        if not isinstance(self.rotation, SoftRotation):
            return self.norm_0
        return congruence(self.rotation.weight, self.sigma_0).square().sum()

    def matrix(self) -> torch.Tensor:
        """M = Q^T Sigma_0 Q; (D, D)."""
        assert self.sigma_0 is not None
        if self.rotation is None:
            return self.sigma_0
        return congruence(self.rotation.matrix(), self.sigma_0)

    def turned(self, mean_0: torch.Tensor) -> torch.Tensor:
        """alpha Q^T mean_0; (D,) -> (D,)."""
        turned = mean_0 if self.rotation is None else mean_0 @ self.rotation.matrix()
        alpha = self.alpha()
        return turned if alpha is None else alpha * turned

    def constraint(self) -> torch.Tensor | None:
        """What keeps a soft Q near the orthogonal matrices; weight 1, as published."""
        return None if self.rotation is None else self.rotation.constraint()

    def q_distance(self, like: torch.Tensor) -> torch.Tensor:
        """||Q - I|| / sqrt(D); ()."""
        return self.rotation.distance_from_identity() if self.rotation is not None else torch.zeros_like(like)

    def parameters(self) -> list[nn.Parameter]:
        """Those of Q and of alpha."""
        found = [] if self.rotation is None else list(self.rotation.parameters())
        return found if self.scale is None else [*found, self.scale]

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Sigma_0, its mean where there is one, and the parameters."""
        named = {"sigma_0": self.sigma_0, "mean_0": self.mean_0}
        state = {name: value for name, value in named.items() if value is not None}
        if self.rotation is not None:
            state["rotation"] = self.rotation.weight.detach()
        if isinstance(self.rotation, CarriedRotation):  # a part of the state: what comes of it depends on where it came from
            state["inverse"] = self.rotation.inverse
        if self.scale is not None:
            state["alpha"] = self.scale.detach()
        return state

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Restore everything bitwise."""
        if self.sigma_0 is not None:
            self.sigma_0 = state["sigma_0"].to(self.sigma_0.device)
        if self.mean_0 is not None:
            self.mean_0 = state["mean_0"].to(self.mean_0.device)
        self.bind()
        with torch.no_grad():
            if self.rotation is not None:
                self.rotation.set_weight(state["rotation"])
            if isinstance(self.rotation, CarriedRotation) and "inverse" in state:  # not where the run began on another device
                self.rotation.inverse.copy_(state["inverse"])
            if self.scale is not None:
                self.scale.copy_(state["alpha"])


def describe(
    raw: torch.Tensor, norm_0: torch.Tensor, spectrum: torch.Tensor, spectrum_0: torch.Tensor, target: Target
) -> dict[str, float]:
    """Named numbers of one step.

    spectral_bound: sum_i (lambda_i - lambda_0i)^2 / ||Sigma_0||^2 with both spectra sorted (Hoffman-Wielandt): no Q can do
    better. trace_ratio: tr Sigma / tr Sigma_0, 1 when the variance is kept.
    """
    values = {
        "similarity_raw": raw,
        "similarity_relative": raw / norm_0,
        "spectral_bound": rift_loss.spectral_distance(spectrum, spectrum_0) / norm_0,
        "trace_ratio": spectrum.sum() / spectrum_0.sum(),
        "effective_rank": effective_rank(spectrum),
        "q_distance": target.q_distance(raw),
    }
    alpha = target.alpha()
    if alpha is not None:
        values["alpha"] = alpha
    numbers = torch.stack([value.to(raw.device) for value in values.values()]).tolist()  # one transfer
    return dict(zip(values, numbers, strict=True))
