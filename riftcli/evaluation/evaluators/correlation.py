"""Does similarity to the pretrained model tell what was kept? What `rift correlate` does (similarity-space paper Fig. 5)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from riftcli.errors import UsageError
from riftcli.runs import provenance
from riftcli.runs.reader import read_report, read_rows
from riftcli.runs.result_table import Findings, Row

Points = Literal["all", "final"]


def points_of(run: Path, which: Points) -> list[dict[str, float]]:
    """What a run measured together: per evaluation on validation (`all`), or once, at its end, on test (`final`)."""
    if which == "all":
        rows = [row for row in read_rows(run) if row["kind"] == "eval"]
        return [{k: v for k, v in row.items() if isinstance(v, float)} | {"epoch": row["epoch"]} for row in rows]
    report = read_report(run)
    point = {name: entry["value"] for name, entry in report["metrics"].items() if entry["value"] is not None}
    for name, entry in report.get("retention", {}).items():
        point |= {f"retention/{name}/knn": entry["knn_after"]}
    return [{**point, "epoch": report["model"]["epoch"]}]


def correlate_run(
    paths: Sequence[tuple[str, Path]], x: str, ys: Sequence[str], bins: int, which: Points, trim: float
) -> Findings:
    """For every y the linear relation with x: over the means of bins, as the paper has it, and over the single points.

    Points are put into the nearest of `bins` equally spaced values of x; `trim`: points whose y lies more than so many
    interquartile ranges outside the quartiles of their bin are left out (the paper does not state its rule); 0 keeps all.
    """
    points: list[Row] = [{"model": label, **point} for label, path in paths for point in points_of(path, which)]
    if not points:
        raise UsageError("no run has an evaluation to correlate: train with a validation split (data.val)")
    known = sorted({key for point in points for key in point} - {"model", "epoch", x})
    if not any(x in point for point in points):
        raise UsageError(f"--x {x}: no run measured it; measured: {', '.join(known)}")
    wanted = list(ys) or [key for key in known if key in ("knn", "ece", "acc") or key.endswith("/knn")]
    if x in wanted:
        raise UsageError(f"--y {x}: that is x; measured beside it: {', '.join(known)}")
    if not wanted:
        raise UsageError(f"no run measured kNN, ECE or accuracy beside {x}; choose --y among: {', '.join(known)}")
    for y in wanted:
        if y not in known:
            raise UsageError(f"--y {y}: no run measured it; measured: {', '.join(known)}")
    rows: list[Row] = []
    means: list[Row] = []
    for y in wanted:
        pairs = [(point[x], point[y]) for point in points if x in point and y in point]
        if not pairs:
            raise UsageError(f"--y {y}: never measured together with {x}; try the other --points")
        binned, left_out = bin_means(pairs, bins, trim)
        means += [{"x": x, "y": y, **cell} for cell in binned]
        cells = [(cell["x_mean"], cell["y_mean"]) for cell in binned]
        rows.append(
            {
                "x": x,
                "y": y,
                "points": len(pairs),
                "left_out": left_out,
                "bins": len(binned),
                **{f"binned_{k}": v for k, v in line(cells).items()},
                **{f"single_{k}": v for k, v in line(pairs).items()},
            }
        )
    env = provenance.environment(torch.device("cpu"), "fp64", 1, 0)
    settings = {"x": x, "bins": bins, "points": which, "trim": trim, "runs": len(paths)}
    columns = dict.fromkeys(key for point in points for key in point)
    flat = [{key: point.get(key) for key in columns} for point in points]
    return Findings("correlate", settings, [], rows, env, {"binned": means, "single": flat})


def bin_means(pairs: Sequence[tuple[float, float]], bins: int, trim: float) -> tuple[list[Row], int]:
    """(means of the bins that hold points, number of points left out as outliers)."""
    if not pairs:
        return [], 0
    xs = torch.tensor([p[0] for p in pairs], dtype=torch.float64)
    ys = torch.tensor([p[1] for p in pairs], dtype=torch.float64)
    low, high = float(xs.min()), float(xs.max())
    width = (high - low) / max(bins - 1, 1)
    index = torch.zeros(len(xs), dtype=torch.long) if width == 0 else ((xs - low) / width).round().long()
    found, left_out = [], 0
    for i in index.unique().tolist():
        own_x, own_y = xs[index == i], ys[index == i]
        if trim and len(own_y) >= 4:
            q1, q3 = own_y.quantile(0.25), own_y.quantile(0.75)
            kept = (own_y >= q1 - trim * (q3 - q1)) & (own_y <= q3 + trim * (q3 - q1))
            left_out += int((~kept).sum())
            own_x, own_y = own_x[kept], own_y[kept]
        found.append({"bin": low + i * width, "count": len(own_y), "x_mean": float(own_x.mean()), "y_mean": float(own_y.mean())})
    return found, left_out


def line(pairs: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """Least-squares slope and intercept, Pearson r and its p value; None below three points or without variance."""
    nothing = {"slope": None, "intercept": None, "r": None, "p": None}
    if len(pairs) < 3 or len({p[0] for p in pairs}) < 2 or len({p[1] for p in pairs}) < 2:
        return nothing
    from scipy.stats import linregress

    found = linregress([p[0] for p in pairs], [p[1] for p in pairs])
    values = {"slope": found.slope, "intercept": found.intercept, "r": found.rvalue, "p": found.pvalue}
    return {name: float(value) if math.isfinite(value) else None for name, value in values.items()}


def draw(folder: Path, findings: Findings) -> Path:
    """FOLDER/correlate.png: one panel per y, single points, bin means and their line."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    x = findings.settings["x"]
    figure, axes = plt.subplots(
        1, len(findings.rows), figsize=(4.2 * len(findings.rows), 3.6), squeeze=False, constrained_layout=True
    )
    for axis, row in zip(axes[0], findings.rows, strict=True):
        y = row["y"]
        single = [(p[x], p[y]) for p in findings.tables["single"] if p.get(x) is not None and p.get(y) is not None]
        means = [(c["x_mean"], c["y_mean"]) for c in findings.tables["binned"] if c["y"] == y]
        axis.scatter(*zip(*single, strict=True), s=8, color="0.3", alpha=0.5, label="evaluations")
        axis.scatter(*zip(*means, strict=True), s=36, color="tab:red", label="means of bins")
        if row["binned_r"] is not None:
            ends = [min(m[0] for m in means), max(m[0] for m in means)]
            axis.plot(ends, [row["binned_intercept"] + row["binned_slope"] * e for e in ends], color="tab:red", lw=1)
        title = "no line" if row["binned_r"] is None else f"r = {row['binned_r']:.2f} ({row['bins']} bins)"
        axis.set(xlabel=x, ylabel=y, title=title)
        axis.grid(alpha=0.25)
        axis.legend(fontsize=7)
    figure.savefig(folder / "correlate.png", dpi=120)
    plt.close(figure)
    return folder / "correlate.png"
