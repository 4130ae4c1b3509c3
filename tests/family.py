"""Regularizers as tests of the step want them: beyond the catalog's defaults, and bound to random pretrained features."""

from __future__ import annotations

from typing import Any

import torch

from riftcli import catalog
from riftcli.protocols import RegularizerContext

READS_TEXTS = [name for name in catalog.names("regularizer") if getattr(catalog.component("regularizer", name), "texts", None)]
OF_IMAGES = [name for name in catalog.names("regularizer") if name not in READS_TEXTS]

FAMILY: dict[str, tuple[str, dict[str, Any]]] = {
    "debiased": ("rift", {"estimator": "debiased"}),
    "paired": ("rift", {"estimator": "paired"}),
    "ema": ("rift", {"estimator": "ema", "mean": True, "alpha": "learn"}),
    "spectral": ("rift", {"q": "spectral"}),
    "procrustes": ("rift", {"q": "procrustes"}),
    "features": ("rift", {"compare": "features", "q": "fixed"}),
    "boft": ("rift", {"rotation": "boft", "block_size": 4}),
    "lambda": ("rift", {"rotation": "lambda_orthogonal", "soft_threshold": 0.5}),
    "alpha, mean": ("rift", {"alpha": "learn", "mean": True}),
    "difference_vector": ("difference_vector", {"strength": 1.0}),
    "ldifs": ("ldifs", {"layers": 2}),
    "procrustes on reference": ("rift", {"q": "procrustes", "on": "reference"}),
    "ema on reference": ("rift", {"estimator": "ema", "on": "reference"}),
    "ldifs on reference": ("ldifs", {"layers": 2, "on": "reference"}),
}


def bound(name: str, dim: int) -> tuple[Any, dict[str, Any]]:
    """(the penalty with moved parameters and running means, what Step and Classifier must know of it)."""
    kind, fields = FAMILY[name]
    config = catalog.component("regularizer", kind)(**fields)
    generator = torch.Generator().manual_seed(1)
    start = torch.randn(100, dim, generator=generator)
    penalty = config.build(RegularizerContext(dim, torch.device("cpu"), lambda: start))
    for parameter in penalty.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    if hasattr(penalty, "observe"):
        penalty.observe(1.5 * start, start)
    return penalty, {"stream": config.on, "layers": getattr(config, "layers", 0)}
