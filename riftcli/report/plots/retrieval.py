"""What old and new queries find, and a gallery that is renewed bit by bit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from riftcli.evaluation.candidates import Candidate
from riftcli.report.plots.canvas import subplots
from riftcli.runs.reader import read_json
from riftcli.runs.result_table import ResultTable, format_number

COLOURS = {True: "tab:green", False: "tab:red", None: "0.6"}
LINES = {"farthest": ("-", "farthest first"), "random": ("--", "random order")}


def plot_retrieval(report: Path, table: ResultTable, candidates: Sequence[Candidate]) -> list[Path]:
    """retrieval.png beside a written report, for its first new model: CMC-1 of every pair of queries and gallery, green where it
    is above the old model's own (the line), red where not; beside it the curves of --backfill.
    """
    found = read_json(report)
    first = found["rows"][0]
    rows = [row for row in found["rows"] if (row["model"], row["data"]) == (first["model"], first["data"])]
    curves = [row for row in found.get("backfill", []) if (row["model"], row["data"]) == (first["model"], first["data"])]
    figure, axes = subplots(1, 2 if curves else 1, figsize=(10 if curves else 5.6, 0.34 * len(rows) + 1.4), squeeze=False)
    _bars(axes[0][0], rows)
    if curves:
        _curves(axes[0][1], curves)
    figure.suptitle(f"{first['data']}: new {first['model']}, old {first['reference']}", fontsize=9)
    figure.savefig(report.with_name("retrieval.png"), dpi=120)
    return [report.with_name("retrieval.png")]


def _bars(axis: Any, rows: Sequence[dict[str, Any]]) -> None:
    names = [f"{row['queries']} / {row['gallery']}" + (f", {row['through']}" if row["through"] else "") for row in rows]
    values = [row["cmc_1"] or 0.0 for row in rows]
    axis.barh(names, values, color=[COLOURS[row["compatible"]] for row in rows])
    for place, (value, row) in enumerate(zip(values, rows, strict=True)):
        axis.text(value, place, f" {format_number(row['cmc_1'], digits=3)}", va="center", fontsize=7)
    axis.axvline(values[0], color="black", lw=0.8)
    axis.invert_yaxis()
    axis.set(xlabel="CMC-1 (queries / gallery)", xlim=(0, min(1.12, max(values) * 1.15 + 1e-6)))
    axis.tick_params(labelsize=8)


def _curves(axis: Any, curves: Sequence[dict[str, Any]]) -> None:
    for place, name in enumerate(dict.fromkeys(row["through"] for row in curves)):
        for order, (line, title) in LINES.items():
            own = [row for row in curves if (row["through"], row["order"]) == (name, order)]
            label = f"{name or 'as it is'}, {title}, area {format_number(own[0]['cmc_1_area'], digits=3)}"
            axis.plot([row["share"] for row in own], [row["cmc_1"] for row in own], line, color=f"C{place}", label=label)
    axis.set(xlabel="share of the gallery that is new", ylabel="CMC-1 of the new queries")
    axis.grid(alpha=0.25)
    axis.legend(fontsize=7)
