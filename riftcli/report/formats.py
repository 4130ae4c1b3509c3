"""A comparison as text, Markdown, LaTeX and CSV."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from riftcli import escaping
from riftcli.files import write_text
from riftcli.report.compare import Cell, Comparison
from riftcli.runs.result_table import write_csv


def text_of(column: str, cell: Cell | None) -> str:
    """A cell for people: `0.8123 +- 0.0040 (+1.2 %, p 0.031)`."""
    if cell is None or cell.mean is None:
        return ""
    whole = column.startswith(("trainable parameters", "train seconds"))
    digits = 0 if whole else 2 if column.startswith("peak memory") else 4
    text = f"{cell.mean:,.{digits}f}"
    if cell.std is not None and not column.startswith("trainable"):
        text += f" +- {cell.std:,.{digits}f}"
    if cell.change is None or whole:
        return text
    chance = "" if cell.p is None else f", p {cell.p:.2g}"
    return f"{text} ({100 * cell.change:+.1f} %{chance})"


def markdown(table: Comparison) -> str:
    """A Markdown table."""
    lines = [f"| run | {' | '.join(map(escaping.markdown, table.columns))} |", "| --- |" + " ---: |" * len(table.columns)]
    for name, row in table.rows.items():
        cells = []
        for column in table.columns:
            cell = row.get(column)
            text = text_of(column, cell)
            cells.append(f"**{text}**" if cell and cell.best else text)
        lines.append(f"| {escaping.markdown(name)} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def latex(table: Comparison) -> str:
    """A LaTeX tabular (booktabs)."""
    head = " & ".join(["run", *map(escaping.latex, table.columns)])
    lines = [rf"\begin{{tabular}}{{l{'r' * len(table.columns)}}}", r"\toprule", rf"{head} \\", r"\midrule"]
    for name, row in table.rows.items():
        cells = []
        for column in table.columns:
            cell = row.get(column)
            text = escaping.latex(text_of(column, cell))
            cells.append(rf"\textbf{{{text}}}" if cell and cell.best else text)
        lines.append(" & ".join([escaping.latex(name), *cells]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def flat(table: Comparison) -> list[dict[str, Any]]:
    """One row per run and column, with every value."""
    return [
        {
            "run": name,
            "column": column,
            "mean": cell.mean,
            "std": cell.std,
            "n": cell.count,
            "best": cell.best,
            "change": cell.change,
            "p": cell.p,
            "values": table.values.get(name, {}).get(column),
        }
        for name, row in table.rows.items()
        for column, cell in row.items()
    ]


def write(folder: Path, table: Comparison) -> list[Path]:
    """compare.csv, compare.md and compare.tex."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"compare.{suffix}" for suffix in ("csv", "md", "tex")]
    rows = [{**row, "values": " ".join(map(str, row["values"] or []))} for row in flat(table)]
    write_csv(paths[0], rows)
    write_text(paths[1], markdown(table))
    write_text(paths[2], latex(table))
    return paths
