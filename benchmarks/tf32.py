"""What `eval.precision: tf32` does to the numbers of a run, reckoned on a CPU with factors rounded as a GPU rounds them.

python benchmarks/tf32.py RUN [RUN ...] [--set data.root=PATH] [--metrics acc,cka,cka_debiased,knn,ece]

TF32 keeps 10 bits of a factor's fraction (round to nearest, ties away from zero) and adds in fp32: linear layers, attention and
convolutions of a forward pass are done so here. Metrics are computed as ever.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from riftcli import cli
from riftcli.evaluation import features

PRODUCTS = {F.linear: 2, F.conv2d: 2, torch.matmul: 2, torch.Tensor.matmul: 2, torch.Tensor.__matmul__: 2, torch.bmm: 2}
DROPPED = 13  # bits of fp32's 23


def rounded(value: Any) -> Any:
    """To 10 bits of fraction; anything but fp32 as it is."""
    if not isinstance(value, torch.Tensor) or value.dtype != torch.float32:
        return value
    half = 1 << (DROPPED - 1)
    return ((value.contiguous().view(torch.int32) + half) & ~((1 << DROPPED) - 1)).view(torch.float32)


class RoundedFactors(TorchFunctionMode):
    """Every product inside the block has rounded factors."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            query, key, value = args[:3]
            with torch._C.DisableTorchFunction():
                scores = rounded(query) @ rounded(key).transpose(-2, -1) * query.shape[-1] ** -0.5
                return rounded(scores.softmax(-1)) @ rounded(value)
        if func in PRODUCTS:
            args = (*map(rounded, args[: PRODUCTS[func]]), *args[PRODUCTS[func] :])
        return func(*args, **kwargs)


@contextlib.contextmanager
def emulated(precision: str, device: torch.device) -> Iterator[None]:
    with RoundedFactors() if precision == "tf32" else contextlib.nullcontext():
        yield


def measured(run: str, precision: str, options: list[str], metrics: str) -> dict[str, float]:
    """Metric -> value of `rift eval` at a precision."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        more = ["--set", f"eval.precision={precision}", "--set", "eval.cache=null", *options]
        assert cli.run(["eval", "--run", run, "--metrics", metrics, "--json", *more]) == 0
    return {name: entry["value"] for name, entry in json.loads(out.getvalue())["metrics"].items()}


def main(runs: list[str], options: list[str], metrics: str) -> None:
    features.computing = emulated
    for run in runs:
        plain, tf32 = (measured(run, precision, options, metrics) for precision in ("fp32", "tf32"))
        print(f"{run}: " + ", ".join(f"{name} {plain[name]:.6f} {tf32[name] - plain[name]:+.6f}" for name in plain), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--set", dest="options", action="append", default=[])
    parser.add_argument("--metrics", default="acc,cka,cka_debiased,knn,ece")
    arguments = parser.parse_args()
    main(arguments.runs, [part for option in arguments.options for part in ("--set", option)], arguments.metrics)
