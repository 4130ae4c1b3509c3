"""C2: our RIFT losses, forward and backward, against torch's orthogonal parametrisation and dense d x d products.

python benchmarks/rift_loss.py             batch 128, one thread; the paper's form with a learned Q
python benchmarks/rift_loss.py family      every member of the family at d = 384
"""

from __future__ import annotations

import sys

import torch
from paired import ratio
from torch.nn.utils import parametrizations

from riftcli.methods.regularizers.rift import Rift
from riftcli.protocols import RegularizerContext

N = 128
MEMBERS = {
    "plugin, Q learned": {},
    "plugin, Q fixed": {"q": "fixed"},
    "debiased, Q fixed": {"q": "fixed", "estimator": "debiased"},
    "paired, Q learned": {"estimator": "paired"},
    "running covariance": {"estimator": "ema"},
    "spectral": {"q": "spectral"},
    "procrustes": {"q": "procrustes"},
    "features, Q fixed": {"compare": "features", "q": "fixed"},
    "OFT blocks": {"rotation": "oft"},
    "BOFT": {"rotation": "boft"},
    "lambda-orthogonal": {"rotation": "lambda_orthogonal"},
}


def ours(d: int, fields: dict | None = None):
    start = torch.randn(2 * d, d)
    penalty = Rift(**(fields or {})).build(RegularizerContext(d, torch.device("cpu"), lambda: start))
    features = torch.randn(N, d, requires_grad=True)
    pretrained = features.detach() + 0.1 * torch.randn(N, d)

    def once():
        features.grad = None
        for parameter in penalty.parameters():
            parameter.grad = None
        penalty.loss(features, pretrained).backward()

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
    if sys.argv[1:] == ["family"]:
        for name, fields in MEMBERS.items():
            ratio(f"C2 {name}, d = 384", ours(384, fields), dense(384), 0.20, pairs=12)
    else:
        ratio("C2 RIFT loss, d = 384", ours(384), dense(384), 0.20)
        ratio("C2 RIFT loss, d = 768", ours(768), dense(768), 0.10, pairs=12)
