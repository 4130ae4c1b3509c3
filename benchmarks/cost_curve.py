"""What more ranks bring: a step's time on 1 to 64 of them, reckoned from bytes, products and rates. Nothing is measured here.

python benchmarks/cost_curve.py [--network-gbit 100] [--images-per-second 3000] ...

Every rank has `--batch` images (weak scaling), so that the global batch, which a loss over it sees on every rank, grows. Of a
ring all-reduce over n ranks each sends 2 (n - 1) / n of the bytes; at most half of the gradients' is hidden behind the backward
pass. The data workers of a rank decode beside all that.
"""

from __future__ import annotations

import argparse

RANKS = (1, 2, 4, 8, 16, 32, 64)


def products(loss: str, batch: int, dim: int) -> float:
    """Floating-point operations of a loss and its gradient over the whole batch, on every rank."""
    if loss == "covariance":  # X^T X, its gradient; Q^T S Q and the solve behind Q are of D x D
        return 3 * 2 * batch * dim**2 + 20 * dim**3
    if loss == "gram":  # RSC: two Gram matrices, and the gradient of one
        return 3 * 2 * batch**2 * dim
    return 0.0


def step(ranks: int, loss: str, options: argparse.Namespace) -> dict[str, float]:
    """Seconds of the parts of a step."""
    whole = ranks * options.batch
    share = (ranks - 1) / ranks
    rate = options.network_gbit / 8 * 1e9
    forward_and_back = options.batch / options.images_per_second * (options.second_forward if loss == "gram" else 1)
    reduce = 2 * share * 4 * options.parameters / rate
    exposed = max(reduce / 2, reduce - forward_and_back * 2 / 3)
    return {
        "network": forward_and_back,
        "loss": products(loss, whole, options.dim) / options.flops,
        "gradients": exposed,
        "features": 0.0 if loss == "none" else 3 * share * 4 * whole * options.dim / rate,
        "input": options.batch * options.decode_ms / 1000 / options.cores,
    }


def main(options: argparse.Namespace) -> None:
    """A table of the seconds, and of images per second relative to one rank alone."""
    print("| ranks | loss | network | + loss | + gradients | + features | input, beside | a step, ms | speed of a rank |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for loss in ("none", "covariance", "gram"):
        alone = 0.0
        for ranks in RANKS:
            parts = step(ranks, loss, options)
            total = max(parts["input"], sum(value for name, value in parts.items() if name != "input"))
            alone = alone or total
            cells = " | ".join(f"{1000 * parts[name]:.1f}" for name in ("network", "loss", "gradients", "features", "input"))
            print(f"| {ranks} | {loss} | {cells} | {1000 * total:.1f} | {alone / total:.2f} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--parameters", type=float, default=86e6, help="that train")
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--batch", type=int, default=128, help="images a rank")
    parser.add_argument("--images-per-second", type=float, default=3000, help="of one rank, forward and backward")
    parser.add_argument("--second-forward", type=float, default=1.3, help="times the network's time, for a frozen copy beside it")
    parser.add_argument("--flops", type=float, default=4e13, help="of a rank in fp32, a second")
    parser.add_argument("--network-gbit", type=float, default=100, help="of a rank")
    parser.add_argument("--decode-ms", type=float, default=1.88, help="of an image and a core")
    parser.add_argument("--cores", type=int, default=16, help="data workers of a rank")
    main(parser.parse_args())
