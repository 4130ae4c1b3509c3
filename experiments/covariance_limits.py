"""What a covariance can and cannot hold: RIFT paper Theorem A3.5, its counter-example, and the noise of small batches.

python experiments/covariance_limits.py [--out DIR] [--seeds 20]        (about a minute)

1. Theorem A3.5: the error of aligned features ||F - F_0 Q||^2 / n against mean and covariance alone. With residual E and its
   cross-covariance C to F_0 Q, the gap is 2 |tr C|, at most 2 sqrt(D) ||C||_F: gap and bound over a range of noise.
2. The counter-example: samples in another order keep mean and covariance to the last digit, and CKA to the old features falls
   to the level of chance. No loss of mean and covariance sees it; a paired one does.
3. Batches: E ||S||^2 - ||Sigma||^2 for the covariance S of a batch of n Gaussian samples, against (||Sigma||^2 + tr(Sigma)^2)
   / m, m = n - 1; and what a covariance that follows the plug-in loss shrinks to (each eigenvalue to (m l - T)+ / (m + 1), T
   their sum), against gradient descent on batches. This is why small batches do badly in Table 5c.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from figures import axes, options, rotation, spread, write

from riftcli.functional.cka import cka
from riftcli.functional.covariance import covariance, effective_rank
from riftcli.functional.rift_loss import covariance_overlap, squared_covariance, squared_covariance_debiased

DIM, BATCHES = 32, (4, 8, 32, 128)


def spectrum() -> torch.Tensor:
    """Eigenvalues of the pretrained covariance, an effective rank of about 12; (DIM,)."""
    return 1 / torch.arange(1, DIM + 1, dtype=torch.float64).sqrt()


def samples(count: int, generator: torch.Generator) -> torch.Tensor:
    """(count, DIM) Gaussian with that covariance and a mean of ones."""
    return torch.randn(count, DIM, generator=generator, dtype=torch.float64) * spectrum().sqrt() + 1


def theorem(seeds: int) -> list[dict[str, Any]]:
    """Gap and bound, over the size of a residual that is partly a copy of the features (so that C is not 0)."""
    rows = []
    for size in (0.0, 0.1, 0.3, 1.0):
        gaps, bounds, errors = [], [], []
        for seed in range(seeds):
            generator = torch.Generator().manual_seed(seed)
            start = samples(500, generator) @ rotation(DIM, generator)
            residual = size * (torch.randn(start.shape, generator=generator, dtype=torch.float64) + 0.5 * (start - start.mean(0)))
            after = start + residual
            n = len(start)
            cross = (start - start.mean(0)).T @ (residual - residual.mean(0)) / n
            sigma, sigma_0 = (covariance(rows_) * (n - 1) / n for rows_ in (after, start))
            error = (after - start).square().sum() / n
            seen = (after.mean(0) - start.mean(0)).square().sum() + (sigma - sigma_0).trace()
            gaps.append(float((error - seen).abs()))
            bounds.append(float(2 * DIM**0.5 * torch.linalg.norm(cross)))
            errors.append(float(error))
        rows.append({"residual": size, "error": spread(errors), "gap": spread(gaps), "bound": spread(bounds)})
        rows[-1]["holds"] = all(gap <= bound + 1e-9 for gap, bound in zip(gaps, bounds, strict=True))
    return rows


def permuted(seeds: int) -> dict[str, Any]:
    """Mean, covariance and CKA of the same features in another order."""
    found: dict[str, list[float]] = {"mean": [], "covariance": [], "cka": [], "cka_debiased": []}
    for seed in range(seeds):
        generator = torch.Generator().manual_seed(seed)
        start = samples(1000, generator)
        after = start[torch.randperm(len(start), generator=generator)]
        found["mean"].append(float((after.mean(0) - start.mean(0)).abs().max()))
        found["covariance"].append(float((covariance(after) - covariance(start)).abs().max()))
        found["cka"].append(cka(start, after) or 0.0)
        found["cka_debiased"].append(cka(start, after, debiased=True) or 0.0)
    return {name: spread(values) for name, values in found.items()}


def floor(draws: int) -> list[dict[str, Any]]:
    """Mean over batches of ||S||^2, less that of the true covariance: measured, predicted, by the U-statistic."""
    values = spectrum()
    true = float(values.square().sum())
    rows = []
    for n in BATCHES:
        generator = torch.Generator().manual_seed(n)
        batches = [samples(n, generator) for _ in range(draws)]
        plain = sum(float(squared_covariance(batch - batch.mean(0))) for batch in batches) / draws
        fair = sum(float(squared_covariance_debiased(batch)) for batch in batches) / draws
        predicted = (true + float(values.sum()) ** 2) / (n - 1)
        rows.append({"batch": n, "measured": plain - true, "predicted": predicted, "debiased": fair - true, "true": true})
    return rows


def shrunk(seeds: int, steps: int) -> list[dict[str, Any]]:
    """Trace and effective rank at the end of a linear map that follows the plug-in loss, batch after batch; and predicted."""
    values = spectrum()
    rows = []
    for n in BATCHES:
        ends, ranks = [], []
        for seed in range(seeds):
            generator = torch.Generator().manual_seed(1000 * n + seed)
            scale = torch.ones(DIM, dtype=torch.float64, requires_grad=True)
            optimizer = torch.optim.Adam([scale], lr=0.02)
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
            for _ in range(steps):
                batch = samples(n, generator) * scale
                centred = batch - batch.mean(0)
                overlap = covariance_overlap(centred, torch.diag(values))
                loss = squared_covariance(centred) - 2 * overlap
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
            left = (scale.detach().square() * values).sort(descending=True).values
            ends.append(float(left.sum() / values.sum()))
            ranks.append(float(effective_rank(left)))
        predicted = _predicted(values, n - 1)
        rows.append({"batch": n, "trace_ratio": spread(ends), "predicted": predicted, "effective_rank": spread(ranks)})
    return rows


def _predicted(values: torch.Tensor, m: int) -> float:
    """Trace ratio at the minimum: eigenvalues (m l - T)+ / (m + 1) with T their sum, found by bisection."""
    low, high = 0.0, float(values.sum())
    for _ in range(100):
        total = (low + high) / 2
        own = float(((m * values - total).clamp_min(0) / (m + 1)).sum())
        low, high = (total, high) if own > total else (low, total)
    return low / float(values.sum())


def run(out: Path, seeds: int, draws: int = 2000, steps: int = 1500) -> dict[str, Any]:
    """All three; writes the JSON and the figure."""
    result: dict[str, Any] = {"theorem": theorem(seeds), "permutation": permuted(seeds), "floor": floor(draws)}
    result["shrinkage"] = shrunk(min(seeds, 3), steps)
    result["settings"] = {"seeds": seeds, "draws": draws, "steps": steps, "dim": DIM, "torch": torch.__version__}
    figure, grid = axes(1, 3, (12, 3.4))
    sizes = [row["residual"] for row in result["theorem"]]
    for key, style in (("gap", "o-"), ("bound", "s--")):
        grid[0].plot(sizes, [row[key]["mean"] for row in result["theorem"]], style, label=key)
    grid[0].set_xlabel("size of the residual")
    grid[0].set_title("Theorem A3.5: what mean and covariance miss", fontsize=9)
    for key, style in (("measured", "o"), ("predicted", "-"), ("debiased", "^")):
        grid[1].plot(BATCHES, [row[key] / row["true"] for row in result["floor"]], style, label=key)
    grid[1].set_title("noise of a batch's ||S||^2, share of the true one", fontsize=9)
    grid[2].errorbar(
        BATCHES, *zip(*[row["trace_ratio"].values() for row in result["shrinkage"]], strict=True), fmt="o", label="trained"
    )
    grid[2].plot(BATCHES, [row["predicted"] for row in result["shrinkage"]], "-", label="predicted")
    grid[2].set_title("variance that the plug-in loss leaves", fontsize=9)
    for axis in grid[1:]:
        axis.set_xscale("log", base=2)
        axis.set_xlabel("batch")
    for axis in grid:
        axis.legend(fontsize=8)
    write(out, "covariance_limits", result, figure)
    return result


if __name__ == "__main__":
    given = options(__doc__, 20).parse_args()
    run(given.out, given.seeds)
