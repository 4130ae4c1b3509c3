"""RIFT: the representation may rotate but must keep its shape."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from riftcli.errors import UsageError
from riftcli.protocols import RegularizerContext

if TYPE_CHECKING:
    import torch

    from riftcli.functional.rift_target import Target
    from riftcli.functional.rotations import Rotation
    from riftcli.methods.regularizers.paired_penalty import PairedPenalty
    from riftcli.methods.regularizers.rift_penalty import RiftPenalty
    from riftcli.methods.regularizers.rift_running import RunningRiftPenalty


@dataclass(frozen=True)
class Rift:
    """Representation Invariance FineTuning: strength * ||Sigma - alpha^2 Q^T Sigma_0 Q||_F^2 (RIFT paper Eq. 12), and its
    family. Sigma: covariance (n - 1) of the last features before the head over the global batch; Sigma_0: of the pretrained
    model; Q: orthogonal, discarded afterwards.

    strength: weight of the term; 0 is exactly plain finetuning. {ratio: r} or {keep: c} choose it while training.
    compare: covariances (the paper's form) | features (||F - alpha F_0 Q||^2 of the same samples, centred: the RIFT paper's
      Eq. 9, from which it derives Eq. 12; zero implies CKA 1, which equal covariances do not). Default: covariances, with q
      procrustes features.
    normalize: relative (divide by ||Sigma_0||_F^2, comparing features by ||F_0||^2, so that a total collapse costs `strength`)
      | raw (the paper's formula to the letter; its scale goes with the fourth power of the features', comparing
      features with the second).
    estimator: plugin (the batch covariance against that of the whole training split without augmentation, as in the paper;
      its noise floor is about (r + 1) / (n - 1) relative, r the effective rank of Sigma_0) | debiased (unbiased at any batch
      size from 4) | paired (Sigma_0 from the pretrained features of the same samples: a second, frozen forward, or a cache)
      | ema (a running covariance: linear in the samples, so exact in one pass over micro-batches and per rank). Default:
      plugin, comparing features paired.
    q: learn (trained beside the network) | fixed (the identity: eigenvectors are kept too) | spectral (the best Q of
      covariances, in closed form: only the spectrum is kept) | procrustes (the best Q of features, in closed form).
    rotation: of a learned q: cayley (every rotation) | oft (one block-diagonal factor) | boft (butterfly factors)
      | lambda_orthogonal (any matrix, pulled back beyond a threshold).
    block_size: of oft and boft. factors: of boft; null takes as many as the feature dimension allows.
    soft_threshold: of lambda_orthogonal, on ||W W^T - I||_F; null is 12 at width 512, growing with the root of the width.
    solver: of rotation cayley: solve (LU) | products (the inverse is carried from step to step by Newton-Schulz, and computed
      anew where Q moved too far; the same Q to 1e-6). auto: products on GPUs, where a solve waits for itself.
    q_lr_scale: learning rate of Q relative to optim.lr. The faster Q follows, the less the term holds.
    alpha: scale of the target (RepSim paper Eq. 9, 11): fixed (1) | learn (a positive scalar) | closed (least squares; then
      nothing holds the variance).
    mean: also + ||mean - alpha Q^T mean_0||^2 (RepSim paper Tab. 5), relative: divided by tr Sigma_0. Of features with q fixed
      it is the default: ||F - F_0||^2, feature distillation; without it they are centred, and may all move by one vector.
    ema_decay: of the running covariance; it averages over about (1 + d) / (1 - d) batches.
    on: task (the task's batches) | reference (the images of the recipe's `reference`).
    """

    strength: float = 1.0
    compare: Literal["covariances", "features"] | None = None
    normalize: Literal["relative", "raw"] = "relative"
    estimator: Literal["plugin", "debiased", "paired", "ema"] | None = None
    q: Literal["learn", "fixed", "spectral", "procrustes"] = "learn"
    q_lr_scale: float = 1.0
    rotation: Literal["cayley", "oft", "boft", "lambda_orthogonal"] = "cayley"
    solver: Literal["auto", "solve", "products"] = "auto"
    block_size: int = 32
    factors: int | None = None
    soft_threshold: float | None = None
    alpha: Literal["fixed", "learn", "closed"] = "fixed"
    mean: bool | None = None
    ema_decay: float = 0.9
    on: Literal["task", "reference"] = "task"

    def __post_init__(self) -> None:
        if self.compare is None:
            object.__setattr__(self, "compare", "features" if self.q == "procrustes" else "covariances")
        if self.estimator is None:
            object.__setattr__(self, "estimator", "paired" if self.compare == "features" else "plugin")
        if self.mean is None:
            object.__setattr__(self, "mean", self.compare == "features" and (self.q, self.alpha) == ("fixed", "fixed"))
        for name in ("strength", "q_lr_scale"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: must be 0 or more")
        if not 0 < self.ema_decay < 1:
            raise ValueError("ema_decay: must be between 0 and 1")
        if self.block_size < 2 or (self.rotation == "boft" and self.block_size % 2):
            raise ValueError("block_size: must be 2 or more, and even for boft")
        if self.factors is not None and self.factors < 1:
            raise ValueError("factors: must be 1 or more")
        if self.soft_threshold is not None and self.soft_threshold < 0:
            raise ValueError("soft_threshold: must be 0 or more")
        self._check_combination()

    def _check_combination(self) -> None:
        features, closed = self.compare == "features", self.q in ("spectral", "procrustes")
        if self.q == "procrustes" and not features:
            raise ValueError("compare: q procrustes is the best rotation of features; leave compare out, or use q spectral")
        if features and self.q not in ("fixed", "procrustes"):
            raise ValueError(
                f"q: features are compared with q procrustes or fixed, not {self.q}; that goes with compare covariances"
            )
        if features and self.estimator != "paired":
            raise ValueError("estimator: features are compared on the same samples; leave it out or use paired")
        if self.q == "spectral" and self.estimator == "debiased":
            raise ValueError("estimator: eigenvalues of a batch cannot be debiased; with q spectral use plugin, paired or ema")
        if features and self.alpha == "learn":
            raise ValueError("alpha: comparing features it is fixed or closed")
        if closed and self.mean:
            raise ValueError(f"mean: needs a Q that is known, and q {self.q} only knows the distance; use q learn or fixed")
        if self.mean and self.alpha == "closed":
            raise ValueError("mean: the closed alpha is that of the covariance; with mean use alpha fixed or learn")
        if self.q != "learn" and self.rotation != "cayley":
            raise ValueError(f"rotation: only a learned Q is parametrised; with q {self.q} leave it out")
        if self.solver == "products" and (self.q, self.rotation) != ("learn", "cayley"):
            raise ValueError("solver: only a learned q with rotation cayley is solved for; leave it out")

    def check(self, sections: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], str]]:
        """(key, what is wrong) of a recipe with these sections."""
        own = getattr(sections["reference"], "batch_size", None) if self.on == "reference" else None
        size = own or getattr(sections["train"], "batch_size", None)
        if size is not None and size < 4 and self.estimator == "debiased":
            yield ("regularizer", "estimator"), f"'debiased' needs at least 4 samples a batch, got {size}"

    @property
    def of_whole_images(self) -> bool:
        """True where batches are compared with the covariance of whole images, measured once: mixed images have another."""
        return self.strength != 0 and self.estimator != "paired"

    def build(self, context: RegularizerContext) -> RiftPenalty | RunningRiftPenalty | PairedPenalty | None:
        """Measure what is kept on the training split; None when strength is 0, so that nothing at all is computed."""
        if self.strength == 0:
            return None
        from riftcli.functional.covariance import covariance
        from riftcli.methods.regularizers.paired_penalty import PairedPenalty
        from riftcli.methods.regularizers.rift_penalty import RiftPenalty
        from riftcli.methods.regularizers.rift_running import RunningRiftPenalty

        if self.compare == "features":
            return PairedPenalty(self.strength, self.feature_distance)
        if self.estimator == "paired":
            return RiftPenalty(self, self.target(context.feature_dim, None, device=context.device))
        features = context.pretrained_features()
        sigma_0 = covariance(features).float().to(context.device)
        mean_0 = features.double().mean(0).float().to(context.device) if self.mean or self.estimator == "ema" else None
        target = self.target(context.feature_dim, sigma_0, mean_0)
        return RunningRiftPenalty(self, target) if self.estimator == "ema" else RiftPenalty(self, target)

    def target(
        self,
        dim: int,
        sigma_0: torch.Tensor | None,
        mean_0: torch.Tensor | None = None,
        device: torch.device | None = None,
    ) -> Target:
        """What is compared with: Sigma_0 (D, D) and its mean (D,), or None where every batch brings its own; Q and alpha."""
        from riftcli.functional.rift_target import Target

        device = sigma_0.device if sigma_0 is not None else device
        rotation = self._rotation(dim, device) if self.q == "learn" else None
        return Target(rotation, sigma_0, mean_0, self.alpha == "learn", device)

    def _rotation(self, dim: int, device: torch.device | None) -> Rotation:
        from riftcli.functional.rotations import ButterflyRotation, CarriedRotation, CayleyRotation, SoftRotation, most_factors

        if self.rotation == "cayley":
            auto = "products" if device is not None and device.type == "cuda" else "solve"
            return CarriedRotation(dim) if (auto if self.solver == "auto" else self.solver) == "products" else CayleyRotation(dim)
        if self.rotation == "lambda_orthogonal":
            return SoftRotation(dim, self.soft_threshold)
        size, most = self.block_size, 0 if dim % self.block_size else most_factors(dim, self.block_size)
        factors = 1 if self.rotation == "oft" else self.factors or most
        if not 1 <= factors <= most:
            what = f"{size} with {factors} factors does not fit" if most else f"{size} does not divide"
            raise UsageError(f"regularizer.block_size: {what} the {dim} features of this model")
        return ButterflyRotation(dim, size, factors)

    def feature_distance(self, features: torch.Tensor, pretrained: torch.Tensor) -> torch.Tensor:
        """||F - alpha F_0 Q||^2, centred, least over Q and alpha where they are free; (n, D), (n, D) -> ()."""
        from riftcli.functional.covariance import centre
        from riftcli.functional.rift_loss import feature_distance, procrustes_distance

        x, x0 = centre(features), centre(pretrained)
        spread = x0.square().sum().clamp_min(1e-30) if self.normalize == "relative" else len(x) - 1
        if self.mean:
            x, x0 = features, pretrained
        distance = (procrustes_distance if self.q == "procrustes" else feature_distance)(x, x0, self.alpha == "closed")
        return distance / spread
