"""C2: our RIFT loss with Q, forward and backward, against torch's orthogonal parametrisation and dense d x d products.

python benchmarks/rift_loss.py       batch 128, one thread
"""

from __future__ import annotations

import torch
from paired import ratio
from torch.nn.utils import parametrizations

from riftcli.methods.regularizers.rift import Rift
from riftcli.methods.regularizers.rift_penalty import RiftPenalty

N = 128


def ours(d: int):
    penalty = RiftPenalty(Rift(), Rift().target(d, torch.cov(torch.randn(d, 2 * d))))
    features = torch.randn(N, d, requires_grad=True)

    def once():
        features.grad = None
        penalty.rotation.zero_grad()
        penalty.loss(features).backward()

    return once


def dense(d: int):
    sigma_0 = torch.cov(torch.randn(d, 2 * d))
    norm = sigma_0.square().sum()
    layer = torch.nn.Linear(d, d, bias=False)
    torch.nn.init.eye_(layer.weight)
    layer = parametrizations.orthogonal(layer, orthogonal_map="matrix_exp")
    features = torch.randn(N, d, requires_grad=True)

    def once():
        features.grad = None
        layer.zero_grad()
        x = features - features.mean(0)
        q = layer.weight
        loss = (x.T @ x / (N - 1) - q.T @ sigma_0 @ q).square().sum() / norm
        loss.backward()

    return once


if __name__ == "__main__":
    ratio("C2 RIFT loss, d = 384", ours(384), dense(384), 0.20)
    ratio("C2 RIFT loss, d = 768", ours(768), dense(768), 0.10, pairs=12)
