"""The covariance forms of RIFT on the batch at hand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from riftcli.functional.rift_target import Target
    from riftcli.functional.rotations import Rotation


class RiftPenalty:
    """strength * the distance of a batch's covariance from the target. Everything is fp32, outside autocast. config: a Rift."""

    def __init__(self, config: Any, target: Target) -> None:
        self.config, self.strength, self.lr_scale = config, config.strength, config.q_lr_scale
        self.target = target
        self.needs_pretrained = target.sigma_0 is None

    @property
    def rotation(self) -> Rotation | None:
        """Q, where it is learned."""
        return self.target.rotation

    def raw(self, features: torch.Tensor, pretrained: torch.Tensor | None = None) -> torch.Tensor:
        """||Sigma - alpha^2 Q^T Sigma_0 Q||_F^2 of a batch, centred before it is multiplied; (n, D) -> ()."""
        return self._parts(features, pretrained)[0]

    def _parts(self, features: torch.Tensor, pretrained: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """(the distance, ||Sigma_0||^2 of what it is the distance from)."""
        import torch

        from riftcli.functional import rift_loss
        from riftcli.functional.covariance import centre

        with torch.autocast(features.device.type, enabled=False):
            x = centre(features.float())  # (n, D)
            x0 = None if pretrained is None or not self.needs_pretrained else centre(pretrained.float())
            own = (
                rift_loss.squared_covariance_debiased(x)
                if self.config.estimator == "debiased"
                else rift_loss.squared_covariance(x)
            )
            overlap, target, norm_0 = self._against(x, x0)
            if self.config.alpha == "closed":
                return rift_loss.scaled_distance(own, overlap, target), norm_0
            alpha = self.target.alpha()
            if alpha is None:
                return own + target - 2 * overlap, norm_0
            return own + alpha**4 * target - 2 * alpha**2 * overlap, norm_0

    def _against(self, x: torch.Tensor, x0: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(tr(Sigma M), tr(M^2), tr(Sigma_0^2)) with Sigma_0 of the training split, or of the same batch where that is given."""
        from riftcli.functional import rift_loss
        from riftcli.functional.covariance import eigenvalues
        from riftcli.functional.rotations import SoftRotation

        if self.config.q == "spectral":
            spectrum_0 = self.target.spectrum_0 if x0 is None else eigenvalues(x0)
            norm_0 = spectrum_0.square().sum()
            return eigenvalues(x) @ spectrum_0, norm_0, norm_0
        y = self.target.rotate(x)  # (n, D)
        if x0 is None:
            assert self.target.sigma_0 is not None
            return rift_loss.covariance_overlap(y, self.target.sigma_0), self.target.squared(), self.target.norm_0
        norm_0 = rift_loss.squared_covariance(x0)
        if isinstance(self.rotation, SoftRotation):
            return rift_loss.paired_overlap(y, x0), rift_loss.squared_covariance(x0 @ self.rotation.weight), norm_0
        return rift_loss.paired_overlap(y, x0), norm_0, norm_0

    def loss(self, features: torch.Tensor, pretrained: torch.Tensor | None = None) -> torch.Tensor:
        """The weighted term; (n, D) -> ()."""
        distance, norm_0 = self._parts(features, pretrained)
        relative = self.config.normalize == "relative"
        loss = self.strength * (1 / norm_0 if relative else 1.0) * distance
        if self.config.mean:
            loss = loss + self.strength * self._mean_term(features, pretrained, relative)
        constraint = self.target.constraint()
        return loss if constraint is None else loss + constraint

    def _mean_term(self, features: torch.Tensor, pretrained: torch.Tensor | None, relative: bool) -> torch.Tensor:
        import torch

        from riftcli.functional import rift_loss

        with torch.autocast(features.device.type, enabled=False):
            rows = features.float()
            if self.needs_pretrained:
                assert pretrained is not None
                mean_0, trace_0 = pretrained.float().mean(0), pretrained.float().var(0).sum()
            else:
                assert self.target.mean_0 is not None
                mean_0, trace_0 = self.target.mean_0, self.target.spectrum_0.sum()
            term = rift_loss.squared_mean_difference(rows, self.target.turned(mean_0), self.config.estimator == "debiased")
            return term / trace_0 if relative else term

    def diagnostics(self, features: torch.Tensor, pretrained: torch.Tensor | None = None) -> dict[str, float]:
        """The loss raw and relative, its lower bound over all Q, and what became of the spectrum."""
        import torch

        from riftcli.functional.covariance import centre, eigenvalues
        from riftcli.functional.rift_target import describe

        with torch.no_grad():
            raw, norm_0 = self._parts(features, pretrained)
            x0 = centre(pretrained.float()) if self.needs_pretrained and pretrained is not None else None
            spectrum_0 = self.target.spectrum_0 if x0 is None else eigenvalues(x0)
            return describe(raw, norm_0, eigenvalues(centre(features.float())), spectrum_0, self.target)

    def parameters(self) -> list[torch.nn.Parameter]:
        """What trains beside the network; empty when Q is fixed."""
        return self.target.parameters()

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Sigma_0 and Q's parameter."""
        return self.target.state_dict()

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Restore Sigma_0 and Q bitwise."""
        self.target.load_state_dict(state)
