"""RIFT on a running covariance: the loss is linear in the samples of a batch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from riftcli.functional.rift_target import Target


class RunningRiftPenalty:
    """strength * ||S - M||_F^2 with S an exponential average of covariances and M = alpha^2 Q^T Sigma_0 Q.

    The gradient for the features is that of 2 <S - M, (f - m)(f - m)^T>, averaged over samples, with S and its mean m as the
    steps before left them: additive over samples, so micro-batches need one pass and ranks exchange nothing but their mean.
    There is no factor 1 - decay: the pull is that of the full distance. Q and alpha get the gradient of the distance itself.
    S starts at Sigma_0, and `observe` moves it.
    """

    needs_pretrained = False
    additive = True

    def __init__(self, config: Any, target: Target) -> None:
        assert target.sigma_0 is not None and target.mean_0 is not None
        self.config, self.strength, self.lr_scale, self.target = config, config.strength, config.q_lr_scale, target
        self.mean, self.covariance = target.mean_0.clone(), target.sigma_0.clone()

    @property
    def rotation(self) -> torch.nn.Module | None:
        """Q, where it is learned."""
        return self.target.rotation

    def _wanted(self) -> torch.Tensor:
        """M; (D, D), with the graph of Q and alpha. q spectral: the eigenvectors of S, which is the closest M there is."""
        import torch

        if self.config.q == "spectral":
            vectors = torch.linalg.eigh(self.covariance).eigenvectors.flip(1)  # descending, as spectrum_0
            wanted = (vectors * self.target.spectrum_0) @ vectors.T
        else:
            wanted = self.target.matrix()
        if self.config.alpha == "closed":
            overlap = (self.covariance * wanted).sum().clamp_min(0)
            return (overlap / wanted.square().sum()).detach() * wanted
        alpha = self.target.alpha()
        return wanted if alpha is None else alpha**2 * wanted

    def loss(self, features: torch.Tensor, pretrained: torch.Tensor | None = None) -> torch.Tensor:
        """The weighted term; (n, D) -> (). Its value is that of the running distance, whatever the batch."""
        import torch

        with torch.autocast(features.device.type, enabled=False):
            rows = features.float()
            error = self.covariance - self._wanted()
            distance = error.square().sum()
            offset = rows - self.mean
            linear = 2 * ((offset @ error.detach()) * offset).sum() / len(rows)
            relative = self.config.normalize == "relative"
            loss = (distance + linear - linear.detach()) / (self.target.norm_0 if relative else 1.0)
            if self.config.mean:
                drift = self.mean - self.target.turned(self.target.mean_0)  # type: ignore[arg-type]
                pull = 2 * (rows @ drift.detach()).mean()
                term = drift.square().sum() + pull - pull.detach()
                loss = loss + term / (self.target.spectrum_0.sum() if relative else 1.0)
            constraint = self.target.constraint()
            loss = self.strength * loss
            return loss if constraint is None else loss + constraint

    def observe(self, features: torch.Tensor, pretrained: torch.Tensor | None = None) -> None:
        """Move the running mean and covariance towards those of the whole global batch; detached (n, D).

        The update is that of separate averages of f and f f^T, written so that nothing large cancels.
        """
        import torch

        rows, decay = features.float(), self.config.ema_decay
        mean = rows.mean(0)
        offset = rows - mean
        step = mean - self.mean
        self.covariance = (
            decay * self.covariance
            + (1 - decay) * (offset.T @ offset) / len(rows)
            + decay * (1 - decay) * torch.outer(step, step)
        )
        self.mean = self.mean + (1 - decay) * step

    def diagnostics(self, features: torch.Tensor, pretrained: torch.Tensor | None = None) -> dict[str, float]:
        """The running distance, raw and relative, and what became of the batch's spectrum."""
        import torch

        from riftcli.functional.covariance import centre, eigenvalues
        from riftcli.functional.rift_target import describe

        with torch.no_grad():
            raw = (self.covariance - self._wanted()).square().sum()
            spectrum = eigenvalues(centre(features.float()))
            report = describe(raw, self.target.norm_0, spectrum, self.target.spectrum_0, self.target)
            del report["spectral_bound"]  # of the batch, where the distance is of the running covariance
            return report

    def parameters(self) -> list[torch.nn.Parameter]:
        """What trains beside the network."""
        return self.target.parameters()

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The target and the running moments."""
        return {**self.target.state_dict(), "running_mean": self.mean, "running_covariance": self.covariance}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Inverse of state_dict."""
        self.target.load_state_dict(state)
        self.mean = state["running_mean"].to(self.mean.device)
        self.covariance = state["running_covariance"].to(self.covariance.device)
