"""Figures without pyplot: nothing of the caller's matplotlib (backend, open figures) changes."""

from __future__ import annotations

from typing import Any


def subplots(rows: int = 1, columns: int = 1, *, figsize: tuple[float, float], squeeze: bool = True) -> tuple[Any, Any]:
    """(figure, axes) as of pyplot.subplots, with a constrained layout; `figure.savefig` needs no backend."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=figsize, layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=squeeze)
