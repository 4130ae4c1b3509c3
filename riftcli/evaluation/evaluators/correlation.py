"""Does similarity to the pretrained model tell what was kept? What `rift correlate` does (similarity-space paper Fig. 5)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch

from riftcli.errors import UsageError
from riftcli.evaluation.candidates import Candidate
from riftcli.evaluation.data_sets import EvalData
from riftcli.evaluation.encoder import Encoder
from riftcli.runs.provenance import environment
from riftcli.runs.reader import as_written, read_report, read_rows
from riftcli.runs.result_table import ResultTable, Row

Points = Literal["all", "final"]


def points_of(run: Path, which: Points) -> list[dict[str, float]]:
    """What a run measured together: per evaluation on validation (`all`), or once, at its end, on test (`final`)."""
    with as_written(run):
        return _points_of(run, which)


def _points_of(run: Path, which: Points) -> list[dict[str, float]]:
    if which == "all":
        rows = [row for row in read_rows(run) if row["kind"] == "eval"]
        return [{k: v for k, v in row.items() if isinstance(v, float)} | {"epoch": row["epoch"]} for row in rows]
    report = read_report(run)
    point = {name: entry["value"] for name, entry in report["metrics"].items() if entry["value"] is not None}
    for name, entry in report.get("retention", {}).items():
        point |= {f"retention/{name}/knn": entry["knn_after"]}
    return [{**point, "epoch": report["model"]["epoch"]}]


@dataclass(frozen=True)
class Correlation:
    """For every y the linear relation with x: over the means of bins, as the paper has it, and over the single points
    (similarity-space paper Fig. 5).

    x: the similarity. y: what it may explain; empty takes kNN, ECE and accuracy. bins: points are put into the nearest of so
    many equally spaced values of x. points: all evaluations on validation, or each run once, at its end, on test (final).
    trim: points whose y lies more than so many interquartile ranges outside the quartiles of their bin are left out (the
    paper does not state its rule); 0 keeps all.
    """

    x: str = "cka"
    y: tuple[str, ...] = ()
    bins: int = 10
    points: Points = "all"
    trim: float = 0.0

    plot: ClassVar[str] = "riftcli.report.plots.correlation:plot_correlation"

    def measure(self, candidates: Sequence[Candidate], data: Sequence[EvalData], encoder: Encoder | None) -> ResultTable:
        """One row per y. Reads what the runs have logged, so neither data nor encoder."""
        x, members = self.x, [(c.label, c.folder) for c in candidates if c.folder is not None]
        points: list[Row] = [{"model": label, **point} for label, path in members for point in points_of(path, self.points)]
        rows: list[Row] = []
        means: list[Row] = []
        for y in self._wanted(points):
            pairs = [(point[x], point[y]) for point in points if x in point and y in point]
            if not pairs:
                raise UsageError(f"--y {y}: never measured together with {x}; try the other --points")
            binned, left_out = bin_means(pairs, self.bins, self.trim)
            means += [{"x": x, "y": y, **cell} for cell in binned]
            cells = [(cell["x_mean"], cell["y_mean"]) for cell in binned]
            facts = {"x": x, "y": y, "points": len(pairs), "left_out": left_out, "bins": len(binned)}
            lines = {f"binned_{k}": v for k, v in line(cells).items()} | {f"single_{k}": v for k, v in line(pairs).items()}
            rows.append({**facts, **lines})
        env = environment(torch.device("cpu"), "fp64", 1, 0)
        settings = {"x": x, "bins": self.bins, "points": self.points, "trim": self.trim, "runs": len(members)}
        columns = dict.fromkeys(key for point in points for key in point)
        flat = [{key: point.get(key) for key in columns} for point in points]
        return ResultTable("correlate", settings, [], rows, env, {"binned": means, "single": flat})

    def _wanted(self, points: list[Row]) -> list[str]:
        """The names of y; raise UsageError for what nobody measured."""
        x = self.x
        if not points:
            raise UsageError("no run has an evaluation to correlate: train with a validation split (data.val)")
        known = sorted({key for point in points for key in point} - {"model", "epoch", x})
        if not any(x in point for point in points):
            raise UsageError(f"--x {x}: no run measured it; measured: {', '.join(known)}")
        wanted = list(self.y) or [key for key in known if key in ("knn", "ece", "acc") or key.endswith("/knn")]
        if x in wanted:
            raise UsageError(f"--y {x}: that is x; measured beside it: {', '.join(known)}")
        if not wanted:
            raise UsageError(f"no run measured kNN, ECE or accuracy beside {x}; choose --y among: {', '.join(known)}")
        for y in wanted:
            if y not in known:
                raise UsageError(f"--y {y}: no run measured it; measured: {', '.join(known)}")
        return wanted


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
