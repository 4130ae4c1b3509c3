"""Confidence against what came true: bins, scores and the temperature that mends most of it. Pure maths on logits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

ROWS = 1024  # samples whose logits are in double precision at a time


@dataclass(frozen=True)
class Bins:
    """A reliability diagram: per bin how many predictions, how confident, how often right. Empty bins hold zeros."""

    edges: torch.Tensor  # (B + 1,)
    count: torch.Tensor  # (B,)
    confidence: torch.Tensor  # (B,) mean
    accuracy: torch.Tensor  # (B,) mean

    @property
    def error(self) -> float:
        """Sum over bins of share * |accuracy - confidence|: the expected calibration error."""
        share = self.count / self.count.sum()
        return float((share * (self.accuracy - self.confidence).abs()).sum())


def reliability(confidence: torch.Tensor, correct: torch.Tensor, bins: int = 15, adaptive: bool = False) -> Bins:
    """Bins (a, b] of equal width on [0, 1], or with equally many predictions each; (N,), (N,) of 0/1, in fp64.

    A confidence of 0 belongs to the first bin.
    """
    confidence, correct = confidence.double().contiguous(), correct.double().contiguous()
    if adaptive:
        ordered = confidence.sort().values
        bins = min(bins, len(ordered))
        cuts = torch.linspace(0, len(ordered), bins + 1).round().long()
        index = torch.empty(len(ordered), dtype=torch.long)
        index[confidence.argsort(stable=True)] = torch.bucketize(torch.arange(len(ordered)), cuts[1:-1], right=True)
        edges = torch.cat([ordered[cuts[:-1]], ordered[-1:]])
    else:
        edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64)
        index = torch.bucketize(confidence, edges[1:-1])
    count = index.bincount(minlength=bins).double()
    filled = count.clamp_min(1)
    sums = [torch.zeros(bins, dtype=torch.float64).index_add_(0, index, values) for values in (confidence, correct)]
    return Bins(edges, count, sums[0] / filled, sums[1] / filled)


def fit_temperature(logits: torch.Tensor, targets: torch.Tensor) -> float:
    """The T > 0 that minimises the negative log-likelihood of softmax(logits / T), or of sigmoid for 0/1 targets (N, C).

    Guo et al. 2017. A bounded search over log T in [-4, 4]: the likelihood is unimodal in 1 / T.
    """
    from scipy.optimize import minimize_scalar

    logits = logits.double()

    def loss(log_temperature: float) -> float:
        return float(negative_log_likelihood(logits / torch.tensor(log_temperature, dtype=torch.float64).exp(), targets))

    found = minimize_scalar(loss, bounds=(-4, 4), method="bounded", options={"xatol": 1e-6})
    return float(torch.tensor(found.x, dtype=torch.float64).exp())


def negative_log_likelihood(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Mean over samples, in nats; (N, C) with class indices (N,), or with 0/1 targets (N, C), then averaged over the labels that
    are known (0 or 1); ().
    """
    if targets.dim() == 1:
        parts = zip(logits.split(ROWS), targets.split(ROWS), strict=True)
        return torch.cat([F.cross_entropy(some.double(), own.long(), reduction="none") for some, own in parts]).mean()
    known = targets <= 1
    return F.binary_cross_entropy_with_logits(logits.double()[known], targets.double()[known])
