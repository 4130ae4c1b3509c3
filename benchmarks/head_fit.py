"""A head fitted to frozen features: five ridges on four fifths, then all samples; against scikit-learn doing the same.

python benchmarks/head_fit.py [--images 9000] [--dim 384] [--classes 100]

Process time of one core, one run of each. Both start every ridge where the one before ended, and are given 200 steps a fit.
"""

from __future__ import annotations

import argparse
import time
import warnings
from types import SimpleNamespace

import torch
from sklearn.linear_model import LogisticRegression
from torch import nn

from riftcli.methods.objectives.softmax import SoftmaxLoss
from riftcli.models.head import RIDGES, fit_head


def ours(features: torch.Tensor, targets: torch.Tensor, classes: int) -> float:
    """The mean loss that our head ends with."""
    head = nn.Linear(features.shape[1], classes)
    return fit_head(SimpleNamespace(get_classifier=lambda: head), features, targets, SoftmaxLoss(None, 0.0))[0]


def theirs(features: torch.Tensor, targets: torch.Tensor) -> float:
    """The same with scikit-learn."""
    x = ((features - features.mean(0)) / (features - features.mean(0)).square().mean().sqrt()).numpy()
    y = targets.numpy()
    held = torch.zeros(len(y), dtype=torch.bool)
    held[targets.argsort(stable=True)[::5]] = True
    model, trials = LogisticRegression(max_iter=200, warm_start=True), []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # 200 steps are not always enough for its tolerance
        for ridge in RIDGES:
            model.C = 1 / (ridge * int((~held).sum()))
            model.fit(x[~held], y[~held])
            trials.append((-float(torch.tensor(model.predict_log_proba(x[held])).gather(1, targets[held, None]).mean()), ridge))
        model.C = 1 / (min(trials)[1] * len(y))
        model.fit(x, y)
    return -float(torch.tensor(model.predict_log_proba(x)).gather(1, targets[:, None]).mean())


def main(count: int, dim: int, classes: int) -> None:
    """Features as a network gives them: a few strong directions, many weak ones."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    spread, turn = torch.logspace(1, -2, dim), torch.linalg.qr(torch.randn(dim, dim, generator=generator))[0]
    targets = torch.randint(0, classes, (count,), generator=generator)
    centres = 0.3 * torch.randn(classes, dim, generator=generator)
    features = ((centres[targets] + torch.randn(count, dim, generator=generator)) * spread) @ turn
    seconds, losses = [], []
    for fit in (lambda: ours(features, targets, classes), lambda: theirs(features, targets)):
        start = time.process_time()
        losses.append(fit())
        seconds.append(time.process_time() - start)
    print(f"{count} x {dim}, {classes} classes: ours {seconds[0]:.1f} s (loss {losses[0]:.4f}), ", end="")
    print(f"scikit-learn {seconds[1]:.1f} s (loss {losses[1]:.4f}), ratio {seconds[0] / seconds[1]:.2f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=9000)
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--classes", type=int, default=100)
    options = parser.parse_args()
    main(options.images, options.dim, options.classes)
