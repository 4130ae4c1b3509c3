"""Penalties of images and their texts, bound: how far each pair has moved from where the pretrained model put it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from riftcli.functional.precision import at_least_fp32
from riftcli.protocols import Pairs, RegularizerContext

if TYPE_CHECKING:
    import torch


class PairTerm:
    """strength * term(pairs, pretrained pairs or None), fp32 outside autocast; no state of its own."""

    pairs = True
    lr_scale = 1.0

    def __init__(self, strength: float, term: Callable[..., torch.Tensor], needs_pretrained: bool) -> None:
        self.strength, self.term, self.needs_pretrained = strength, term, needs_pretrained

    def loss(self, features: Pairs, pretrained: Pairs | None) -> torch.Tensor:
        """The weighted term; -> ()."""
        import torch

        with torch.autocast(features.images.device.type, enabled=False):
            return self.strength * self.term(_wide(features), None if pretrained is None else _wide(pretrained))

    def diagnostics(self, features: Pairs, pretrained: Pairs | None) -> dict[str, float]:
        """CKA of the images, and the mean length of the difference vectors; without pretrained pairs, how many images are
        nearest to their own text.
        """
        import torch

        from riftcli.functional.cka import linear_cka
        from riftcli.functional.covariance import centre

        with torch.no_grad():
            images, texts = features.images.float(), features.texts.float()
            if pretrained is None:
                own = (images @ texts.T).argmax(1) == torch.arange(len(images), device=images.device)
                return {"own_text_nearest": float(own.float().mean())}
            old_images, old_texts = pretrained.images.float(), pretrained.texts.float()
            values = [
                linear_cka(old_images, images),
                centre(images).square().sum() / centre(old_images).square().sum().clamp_min(1e-30),
                (images - old_images).norm(dim=1).mean(),
                (texts - old_texts).norm(dim=1).mean(),
            ]
            return dict(zip(["batch_cka", "trace_ratio", "image_shift", "text_shift"], torch.stack(values).tolist(), strict=True))

    def parameters(self) -> list[torch.nn.Parameter]:
        """None of its own."""
        return []

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Nothing to save."""
        return {}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Nothing to restore."""


@dataclass(frozen=True)
class DifferenceSettings:
    """What dive and cosine have in common: all but what a difference is, and where its running mean starts."""

    strength: float = 1000.0
    alpha: float = 0.99
    average: bool = True
    pairwise: bool = True
    mean_gradient: bool = False
    on: Literal["reference", "task"] = "reference"
    texts: ClassVar[str] = "sample"

    def __post_init__(self) -> None:
        if self.strength < 0:
            raise ValueError("strength: must be 0 or more")
        if not 0 <= self.alpha < 1:
            raise ValueError("alpha: must be 0 or more and below 1")
        if not (self.average or self.pairwise):
            raise ValueError("average: with pairwise false too there is nothing to add; use regularizer.name none")

    def build(self, context: RegularizerContext) -> EqualDifferences | None:
        """None when strength is 0."""
        return None if self.strength == 0 else EqualDifferences(self, self.first_mean(context))

    def first_mean(self, context: RegularizerContext) -> torch.Tensor:
        """(K,) before the first batch."""
        raise NotImplementedError

    def differences(self, features: Pairs, pretrained: Pairs) -> tuple[torch.Tensor, torch.Tensor]:
        """(u (n, K), v (n, K)) of images and texts."""
        raise NotImplementedError


class EqualDifferences(PairTerm):
    """Differences of a pair from its pretrained self, kept equal to their running mean and to each other (DiVE Eq. 6 to 9).

    start: the running mean (K,) before the first batch. It is part of the state, and the same on every rank.
    """

    def __init__(self, config: DifferenceSettings, start: torch.Tensor) -> None:
        super().__init__(config.strength, self._equalised, needs_pretrained=True)
        self.config, self.mean = config, start

    def _moved(self, u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return self.config.alpha * self.mean + (1 - self.config.alpha) * ((u + v) / 2).mean(0)

    def _equalised(self, features: Pairs, pretrained: Pairs) -> torch.Tensor:
        u, v = self.config.differences(features, pretrained)
        total = u.new_zeros(())
        if self.config.average:
            mean = self._moved(u, v)
            mean = mean if self.config.mean_gradient else mean.detach()
            total = total + (u - mean).square().sum(1).mean() + (v - mean).square().sum(1).mean()
        if self.config.pairwise:
            total = total + (u - v).square().sum(1).mean()
        return total

    def observe(self, features: Pairs, pretrained: Pairs | None) -> None:
        """Move the running mean by this step's batch; once a step, after the loss."""
        assert pretrained is not None
        u, v = self.config.differences(_wide(features), _wide(pretrained))
        self.mean = self._moved(u, v).detach()

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The running mean."""
        return {"mean": self.mean}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Inverse of state_dict."""
        self.mean = state["mean"].to(self.mean.device)


def _wide(pairs: Pairs) -> Pairs:
    """In fp32 at least: difference vectors are some thousandths long."""
    return Pairs(*map(at_least_fp32, pairs))
