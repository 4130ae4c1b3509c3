"""ROC, precision over recall and net benefit of every class, for `rift clinical`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from riftcli.report.plots.canvas import subplots

if TYPE_CHECKING:
    from riftcli.runs.result_table import ResultTable

CURVES = {
    "roc": ("false_positive_rate", "sensitivity", "1 - specificity", "sensitivity"),
    "pr": ("sensitivity", "ppv", "sensitivity (recall)", "PPV (precision)"),
    "net_benefit": ("threshold", "net_benefit", "threshold probability", "net benefit"),
}
MOST = 10  # classes with a colour of their own


def plot_clinical(report: Path, table: ResultTable, candidates: Sequence[Any]) -> list[Path]:
    """clinical.png beside a report: one panel per curve, one line per class, of the first model there."""
    from riftcli.runs.reader import read_json

    found = read_json(report)
    if not found.get("roc"):
        return []
    first = (found["roc"][0]["model"], found["roc"][0]["data"])  # of several models or sets, the first one is drawn
    classes = list(dict.fromkeys(row["class"] for row in found["roc"] if (row["model"], row["data"]) == first))[:MOST]
    figure, axes = subplots(1, 3, figsize=(14, 4.4))
    for axis, (name, (x, y, x_label, y_label)) in zip(axes, CURVES.items(), strict=True):
        rows = [row for row in found[name] if (row["model"], row["data"]) == first]
        for place, label in enumerate(classes):
            own = [row for row in rows if row["class"] == label]
            axis.plot([row[x] for row in own], [row[y] for row in own], color=f"C{place}", lw=1.4, label=label)
            if name == "net_benefit":
                axis.plot([row[x] for row in own], [row["treat_all"] for row in own], ":", color=f"C{place}", lw=1)
        axis.set(xlabel=x_label, ylabel=y_label)
        axis.grid(alpha=0.25)
    axes[0].plot([0, 1], [0, 1], ":", color="0.6", lw=1)
    best = max(row["net_benefit"] for row in found["net_benefit"] if (row["model"], row["data"]) == first)
    axes[2].set(ylim=(-0.05, max(0.05, best) * 1.1), title="dotted: everybody is treated; 0: nobody")
    axes[2].axhline(0, color="0.6", lw=1)
    axes[0].legend(fontsize=7, title="class against the others", title_fontsize=7)
    path = report.with_name("clinical.png")
    figure.savefig(path, dpi=120)
    return [path]
