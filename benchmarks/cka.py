"""C6: streaming CKA against Gram matrices, and the error of both against fp64.

python benchmarks/cka.py             N = 10,000, d = 384, one thread
"""

from __future__ import annotations

import torch
from paired import ratio

from riftcli.functional.cka import cka

N, D = 10_000, 384


def gram(x: torch.Tensor, y: torch.Tensor) -> float:
    x, y = x - x.mean(0), y - y.mean(0)
    k, m = x @ x.T, y @ y.T
    return float((k * m).sum() / (k.norm() * m.norm()))


if __name__ == "__main__":
    torch.manual_seed(0)
    x = torch.randn(N, D) * torch.linspace(3, 0.1, D) + 5
    y = x + 0.7 * torch.randn(N, D)
    exact = gram(x.double(), y.double())
    ratio("C6 streaming CKA / Gram matrices", lambda: cka(x, y), lambda: gram(x, y), 1 / 30, pairs=12)
    ratio(
        "the three D x D products alone / Gram matrices",
        lambda: (x.T @ x, x.T @ y, y.T @ y),
        lambda: gram(x, y),
        1 / 30,
        pairs=12,
    )
    print(f"C6 absolute error against fp64: streaming {abs(cka(x, y) - exact):.1e}, fp32 Gram {abs(gram(x, y) - exact):.1e}")
