"""How far a cloud of features has moved on a map of two principal components (RIFT paper Fig. 4)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from riftcli.functional.alignment import procrustes_align

GRID = 100  # cells per axis on which the two densities are compared


@dataclass(frozen=True)
class Map:
    """Two sets of features on the same plane."""

    before: torch.Tensor  # (N, 2)
    after: torch.Tensor  # (N, 2)


def pca_map(before: torch.Tensor, after: torch.Tensor, aligned: bool = False) -> Map:
    """Two principal components of the union of both sets, in fp64, signs fixed; (N, D), (N, D).

    aligned: rotate and shift `after` onto `before` first. RIFT permits a rotation, and a plain map counts it as a loss.
    """
    before, after = before.detach().double(), after.detach().double()
    if aligned:
        after = procrustes_align(before, after)
    union = torch.cat([before, after])
    mean = union.mean(0)
    _, vectors = torch.linalg.eigh((union - mean).T @ (union - mean))
    axes = vectors[:, -2:].flip(1)  # (D, 2), the largest first
    strongest = axes.abs().argmax(0)
    axes = axes * axes[strongest, torch.arange(2)].sign()
    return Map((before - mean) @ axes, (after - mean) @ axes)


def centre_distance(plane: Map) -> tuple[float, float | None]:
    """(distance of the two means, the same in units of the spread of `before`); the second is None without a spread."""
    distance = float(torch.linalg.norm(plane.after.mean(0) - plane.before.mean(0)))
    spread = float(plane.before.var(0).sum().sqrt())
    return distance, distance / spread if spread > 0 else None


def density_overlap(plane: Map) -> float:
    """Integral of the smaller of the two densities, 0 (apart) to 1 (the same): Gaussian kernel density estimates (Scott's
    rule) on a 100 x 100 grid over the joint range and 5 % more. The paper names no definition; this is ours.
    """
    from scipy.stats import gaussian_kde

    clouds = [cloud.numpy() for cloud in (plane.before, plane.after)]
    both = np.concatenate(clouds)
    low, high = both.min(0), both.max(0)
    margin = 0.05 * np.maximum(high - low, 1e-12)
    axes = [np.linspace(low[i] - margin[i], high[i] + margin[i], GRID) for i in range(2)]
    points = np.stack([axis.ravel() for axis in np.meshgrid(*axes)])  # (2, GRID^2)
    # a cloud on a line has no density in the plane without it; the same for both, so that equal clouds overlap completely
    jitter = np.random.default_rng(0).normal(0, (1e-6 * max(float(both.var(0).sum()), 1e-12)) ** 0.5, clouds[0].shape)
    densities = []
    for cloud in clouds:
        density = gaussian_kde((cloud + jitter).T)(points)
        densities.append(density / max(density.sum(), 1e-300))
    return float(np.minimum(*densities).sum())
