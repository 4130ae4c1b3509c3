"""RIFT: the covariance of the features may rotate but must keep its shape."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from riftcli.protocols import RegularizerContext

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Rift:
    """Representation Invariance FineTuning: strength * ||Sigma - Q^T Sigma_0 Q||_F^2 (RIFT paper Eq. 12).

    Sigma: covariance (n - 1) of the last features before the head over the global batch; Sigma_0: the same of the pretrained
    model over the whole training split, without augmentation; Q: orthogonal, starts at the identity, discarded afterwards.

    strength: weight of the term; 0 is exactly plain finetuning.
    normalize: relative (divide by ||Sigma_0||_F^2, so a total collapse costs `strength`) | raw (the paper's formula to the
      letter; its scale goes with the fourth power of the features').
    estimator: plugin (the batch covariance, as in the paper; its noise floor is about (r + 1) / (n - 1) relative, r the
      effective rank of Sigma_0).
    q: learn (a Cayley rotation trained beside the network) | fixed (the identity: eigenvectors are kept too).
    q_lr_scale: learning rate of Q relative to optim.lr. The faster Q follows, the less the term holds.
    """

    strength: float = 1.0
    normalize: Literal["relative", "raw"] = "relative"
    estimator: Literal["plugin"] = "plugin"
    q: Literal["learn", "fixed"] = "learn"
    q_lr_scale: float = 1.0

    def __post_init__(self) -> None:
        if self.strength < 0:
            raise ValueError("strength: must be 0 or more")
        if self.q_lr_scale < 0:
            raise ValueError("q_lr_scale: must be 0 or more")

    def build(self, context: RegularizerContext) -> RiftPenalty | None:
        """Measure Sigma_0 on the training split; None when strength is 0, so that nothing at all is computed."""
        if self.strength == 0:
            return None
        from riftcli.functional.covariance import covariance

        return RiftPenalty(self, covariance(context.pretrained_features()).float().to(context.device))


class RiftPenalty:
    """The term bound to Sigma_0 (D, D) fp32. Everything is fp32, outside autocast."""

    needs_pretrained = False

    def __init__(self, config: Rift, sigma_0: torch.Tensor) -> None:
        from riftcli.functional.orthogonal import CayleyRotation

        self.config = config
        self.lr_scale = config.q_lr_scale
        self.rotation = CayleyRotation(sigma_0.shape[0]).to(sigma_0.device) if config.q == "learn" else None
        self._bind(sigma_0)

    def _bind(self, sigma_0: torch.Tensor) -> None:
        self.sigma_0 = sigma_0
        self.norm_0 = sigma_0.square().sum()  # ||Sigma_0||_F^2
        self.spectrum_0 = _descending_spectrum(sigma_0)

    def raw(self, features: torch.Tensor) -> torch.Tensor:
        """||Sigma - Q^T Sigma_0 Q||_F^2 of a batch, centred before it is multiplied; (n, D) -> ().

        Expanded into ||Sigma||^2 + ||Sigma_0||^2 - 2 tr(Sigma Q^T Sigma_0 Q): the middle one needs no Q, the last is
        <Y Sigma_0, Y> / (n - 1) with Y = X Q^T, so no D x D product depends on the batch when n < D.
        """
        import torch

        from riftcli.functional.covariance import centre

        with torch.autocast(features.device.type, enabled=False):
            x = centre(features.float())  # (n, D)
            n, dim = x.shape
            own = (x @ x.T if n < dim else x.T @ x).square().sum() / (n - 1) ** 2
            y = x if self.rotation is None else self.rotation.rotate(x)  # (n, D)
            cross = ((y @ self.sigma_0) * y).sum() / (n - 1)
            return own + self.norm_0 - 2 * cross

    def loss(self, features: torch.Tensor, pretrained: torch.Tensor | None = None) -> torch.Tensor:
        """The weighted term; (n, D) -> ()."""
        scale = 1.0 if self.config.normalize == "raw" else 1 / self.norm_0
        return self.config.strength * scale * self.raw(features)

    def diagnostics(self, features: torch.Tensor, pretrained: torch.Tensor | None = None) -> dict[str, float]:
        """The loss raw and relative, its lower bound over all Q, and what became of the spectrum.

        spectral_bound: sum_i (lambda_i - lambda_0i)^2 / ||Sigma_0||^2 with both spectra sorted (Hoffman-Wielandt): no Q
        can do better. trace_ratio: tr Sigma / tr Sigma_0, 1 when the variance is kept.
        """
        import torch

        from riftcli.functional.covariance import centre, effective_rank, eigenvalues

        with torch.no_grad():
            raw = self.raw(features)
            spectrum = eigenvalues(centre(features.float()))
            bound = (spectrum - self.spectrum_0).square().sum()
            q_distance = self.rotation.distance_from_identity() if self.rotation is not None else torch.zeros_like(raw)
            names = {
                "similarity_raw": raw,
                "similarity_relative": raw / self.norm_0,
                "spectral_bound": bound / self.norm_0,
                "trace_ratio": spectrum.sum() / self.spectrum_0.sum(),
                "effective_rank": effective_rank(spectrum),
                "q_distance": q_distance,
            }
            values = torch.stack([value.to(raw.device) for value in names.values()]).tolist()  # one transfer
            return dict(zip(names, values, strict=True))

    def parameters(self) -> list[torch.nn.Parameter]:
        """The parameter behind Q; empty when Q is fixed."""
        return [] if self.rotation is None else list(self.rotation.parameters())

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Sigma_0 and Q's parameter."""
        state = {"sigma_0": self.sigma_0}
        if self.rotation is not None:
            state["rotation"] = self.rotation.weight.detach()
        return state

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Restore Sigma_0 and Q bitwise."""
        import torch

        self._bind(state["sigma_0"].to(self.sigma_0.device))
        if self.rotation is not None:
            with torch.no_grad():
                self.rotation.weight.copy_(state["rotation"])


def _descending_spectrum(sigma: torch.Tensor) -> torch.Tensor:
    import torch

    return torch.linalg.eigvalsh(sigma.double()).flip(0).clamp_min(0).float()  # (D,)
