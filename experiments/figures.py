"""What the experiments share: a JSON and a picture beside each other."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch


def options(about: str | None, seeds: int) -> argparse.ArgumentParser:
    """--out and --seeds; about: the docstring of the experiment."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("experiments_out"))
    parser.add_argument("--seeds", type=int, default=seeds)
    return parser


def rotation(dim: int, generator: torch.Generator) -> torch.Tensor:
    """A random orthogonal matrix, uniform (QR of a Gaussian with the signs of R's diagonal); (dim, dim) fp64."""
    q, r = torch.linalg.qr(torch.randn(dim, dim, generator=generator, dtype=torch.float64))
    return q * r.diagonal().sign()


def axes(rows: int, columns: int, size: tuple[float, float]) -> tuple[Any, Any]:
    """(figure, axes) without pyplot."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots(rows, columns)


def write(out: Path, name: str, result: dict[str, Any], figure: Any) -> None:
    """OUT/NAME.json and OUT/NAME.png."""
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    figure.savefig(out / f"{name}.png", dpi=110)
    print(f"{out / name}.json, .png")


def spread(values: list[float]) -> dict[str, float]:
    """Mean and standard deviation over seeds."""
    found = torch.tensor(values, dtype=torch.float64)
    return {"mean": float(found.mean()), "std": float(found.std()) if len(values) > 1 else 0.0}
