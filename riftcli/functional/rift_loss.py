"""The RIFT family as pure functions: how far the covariance, the spectrum or the features of a batch are from the pretrained.

Rows are samples; x (n, D) are centred features of the batch, x0 (n, D) the centred pretrained features of the same samples,
y = x Q^T the rotated features, Sigma = x^T x / (n - 1) the batch covariance, M = Q^T Sigma_0 Q the target. The covariance
distance ||Sigma - a^2 M||_F^2 is expanded into tr(Sigma^2) - 2 a^2 tr(Sigma M) + a^4 tr(M^2), so that no D x D product
depends on the batch when n < D (RIFT paper Eq. 11-12; RepSim paper Eq. 12-14).
"""

from __future__ import annotations

import torch


def squared_covariance(x: torch.Tensor) -> torch.Tensor:
    """tr(Sigma^2) of centred rows, the plug-in value; (n, D) -> ().

    Its expectation is tr(S^2)(1 + 1/m) + tr(S)^2 / m with m = n - 1 and S the true covariance (Gaussian rows): it grows as the
    batch shrinks, and its gradient then pulls the spectrum towards zero.
    """
    n, dim = x.shape
    return (x @ x.T if n < dim else x.T @ x).square().sum() / (n - 1) ** 2


def squared_covariance_debiased(x: torch.Tensor) -> torch.Tensor:
    """The U-statistic of tr(S^2): unbiased in value and gradient at any n >= 4; may be negative; (n, D) -> ().

    HSIC_1 of Song et al. 2012, Eq. 5, of the linear kernel with itself. Shift-invariant, so centred rows do as well as raw ones.
    """
    n = len(x)
    gram = x @ x.T
    gram = gram - torch.diag_embed(gram.diagonal())
    rows = gram.sum(1)
    total = gram.square().sum() + rows.sum() ** 2 / ((n - 1) * (n - 2)) - 2 / (n - 2) * rows.square().sum()
    return total / (n * (n - 3))


def covariance_overlap(y: torch.Tensor, sigma_0: torch.Tensor) -> torch.Tensor:
    """tr(Sigma Q^T Sigma_0 Q), unbiased; rotated centred rows (n, D), (D, D) -> ()."""
    return ((y @ sigma_0) * y).sum() / (len(y) - 1)


def paired_overlap(y: torch.Tensor, x0: torch.Tensor) -> torch.Tensor:
    """The same with the pretrained covariance of the same batch in place of Sigma_0; (n, D), (n, D) -> ()."""
    n, dim = y.shape
    if n < dim:
        return (x0 @ y.T).square().sum() / (n - 1) ** 2
    return ((y.T @ y) * (x0.T @ x0)).sum() / (n - 1) ** 2


def scaled_distance(own: torch.Tensor, overlap: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """min over a^2 >= 0 of own - 2 a^2 overlap + a^4 target: the distance where the scale is free; () each -> ().

    a^2 = overlap / target (least squares). Nothing then holds the variance: a collapse to zero costs nothing.
    """
    return own - overlap.clamp_min(0).square() / target


def spectral_distance(spectrum: torch.Tensor, spectrum_0: torch.Tensor) -> torch.Tensor:
    """min over orthogonal Q of ||Sigma - Q^T Sigma_0 Q||_F^2: both spectra sorted (Hoffman-Wielandt); (D,), (D,) -> ()."""
    return (spectrum - spectrum_0).square().sum()


def nuclear_overlap(x: torch.Tensor, x0: torch.Tensor) -> torch.Tensor:
    """||X_0^T X||_*, the sum of singular values, differentiable in x; (n, D), (n, D) -> ().

    With fewer rows than columns the D x D product is never formed: X_0^T = U R gives the same singular values for R X (n, D).
    The gradient is U V^T of the singular vectors, which is bounded: no division by gaps between singular values.
    """
    n, dim = x.shape
    product = torch.linalg.qr(x0.T, mode="r").R @ x if n < dim else x0.T @ x
    return torch.linalg.svdvals(product).sum()


def procrustes_distance(x: torch.Tensor, x0: torch.Tensor, free_scale: bool = False) -> torch.Tensor:
    """min over orthogonal Q of ||X - a X_0 Q||_F^2: the RIFT paper's Eq. 9 in closed form; centred (n, D), (n, D) -> ().

    = ||X||^2 + a^2 ||X_0||^2 - 2 a ||X_0^T X||_*, with a = 1, or the least-squares a = ||X_0^T X||_* / ||X_0||^2. Zero means
    equal features up to a rotation and a shift, so CKA = 1, which equal covariances do not imply.
    """
    norm_0, overlap = x0.square().sum(), nuclear_overlap(x, x0)
    if free_scale:
        return x.square().sum() - overlap.square() / norm_0.clamp_min(1e-30)
    return x.square().sum() + norm_0 - 2 * overlap


def feature_distance(x: torch.Tensor, x0: torch.Tensor, free_scale: bool = False) -> torch.Tensor:
    """||X - a X_0||_F^2, the same with Q held at the identity; centred (n, D), (n, D) -> ().

    a = 1, or the least-squares a = tr(X_0^T X) / ||X_0||^2 (never negative). Zero means features that all moved by one vector:
    the average vector loss of DiVE (Eq. 8) with the mean of the batch, written on features instead of difference vectors.
    """
    if free_scale:
        overlap = (x * x0).sum().clamp_min(0)
        return x.square().sum() - overlap.square() / x0.square().sum().clamp_min(1e-30)
    return (x - x0).square().sum()


def squared_mean_difference(rows: torch.Tensor, target: torch.Tensor, debiased: bool = False) -> torch.Tensor:
    """||mean of rows - target||^2; (n, D), (D,) -> (). debiased: over pairs of different samples, free of the noise tr(S) / n."""
    offset = rows - target
    n = len(rows)
    plain = offset.mean(0).square().sum()
    return (n * plain - offset.square().sum() / n) / (n - 1) if debiased else plain
