"""Mixup and CutMix: images of a global batch mixed in pairs, the same at any number of ranks and micro-batches."""

from __future__ import annotations

from typing import Any

import torch

from riftcli import dist
from riftcli.data.batches import sample_seed
from riftcli.protocols import ObjectiveFn
from riftcli.recipe.image_sections import AugmentSection


class MixedObjective:
    """An objective of mixed images: each loss is a mean of those for both labels, with the share that each has in the image.

    An image is mixed with the one before it in the global batch, one share for all, drawn anew in every step from Beta(a, a):
    mixup (Zhang et al. 2018, Eq. 1) mixes all pixels, CutMix (Yun et al. 2019, Eq. 1, 2) pastes a box of the other image and
    takes the box's area for the share. With both, a coin decides in every step. Libraries mix within the batch that a process
    holds, so that the number of processes decides who is mixed with whom: here the ranks hand on one image each.
    """

    def __init__(self, objective: ObjectiveFn, mixup: float, cutmix: float, seed: int) -> None:
        self.objective, self.mixup, self.cutmix, self.seed = objective, mixup, cutmix, seed
        self.share = 1.0  # of an image in its mixture, in this step
        self.box: tuple[slice, slice] | None = None  # of the other image, where it is pasted

    @classmethod
    def of(cls, objective: Any, augment: AugmentSection, seed: int) -> Any:
        """The objective as it is where nothing is mixed."""
        return cls(objective, augment.mixup, augment.cutmix, seed) if augment.mixed else objective

    @property
    def class_weights(self) -> torch.Tensor | None:
        """(C,), for the report."""
        return self.objective.class_weights

    def mix(self, images: torch.Tensor, targets: torch.Tensor, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """This rank's images, each with the one that it is mixed with (n, 2, 3, H, W), and both targets of each (n, 2, ...).

        Draws how they are mixed; `blend` does it, of as many at a time as go through the network.
        """
        generator = torch.Generator().manual_seed(sample_seed(self.seed, step, "mix"))
        cut = self.cutmix > 0 and (self.mixup == 0 or bool(torch.rand((), generator=generator) < 0.5))
        self.share = _beta(self.cutmix if cut else self.mixup, generator)
        self.box = box(self.share, images.shape[-2], images.shape[-1], generator) if cut else None
        if self.box is not None:
            rows, columns = self.box
            area = (rows.stop - rows.start) * (columns.stop - columns.start)
            self.share = 1 - area / (images.shape[-2] * images.shape[-1])
        return torch.stack([images, _before(images)], 1), torch.stack([targets, _before(targets)], 1)

    def blend(self, pairs: torch.Tensor) -> torch.Tensor:
        """(m, 2, 3, H, W) of `mix` -> mixtures (m, 3, H, W), floats on the images' own scale."""
        images, others = pairs[:, 0].float(), pairs[:, 1].float()
        if self.box is None:
            return torch.lerp(others, images, self.share)
        rows, columns = self.box
        mixed = images.clone()
        mixed[..., rows, columns] = others[..., rows, columns]
        return mixed

    def losses(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """(n, C) and both targets (n, 2, ...) -> (n,)."""
        return self._mean(self.objective.losses(logits, targets[:, 0]), self.objective.losses(logits, targets[:, 1]))

    def weights(self, targets: torch.Tensor) -> torch.Tensor:
        """Both targets (n, 2, ...) -> (n,)."""
        return self._mean(self.objective.weights(targets[:, 0]), self.objective.weights(targets[:, 1]))

    def _mean(self, own: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return self.share * own + (1 - self.share) * other


def box(share: float, height: int, width: int, generator: torch.Generator) -> tuple[slice, slice]:
    """Rows and columns of a box with an area of 1 - share and the image's proportions, its centre anywhere; cut at the border."""
    side = (1 - share) ** 0.5
    found = []
    for length in (height, width):
        centre, half = int(torch.randint(length, (), generator=generator)), int(side * length / 2)
        found.append(slice(max(centre - half, 0), min(centre + half, length)))
    return found[0], found[1]


def _beta(a: float, generator: torch.Generator) -> float:
    """A draw from Beta(a, a), of two Gamma draws."""
    both = torch._standard_gamma(torch.full((2,), a, dtype=torch.float64), generator=generator)
    return float(both[0] / both.sum()) if both.sum() > 0 else 0.5


def _before(rows: torch.Tensor) -> torch.Tensor:
    """For each row of this rank the one before it in the global batch, for the very first the last."""
    last = dist.gather_rows(rows[-1:])  # (ranks, ...)
    return torch.cat([last[dist.rank() - 1][None], rows[:-1]])
