"""rift wise."""

from __future__ import annotations

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Optional

import typer


class Head(StrEnum):
    """The head at the pretrained end."""

    linear_probe = "linear_probe"
    finetuned = "finetuned"
    zero_shot = "zero_shot"


def wise(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A finished run.")],
    alphas: Annotated[str, typer.Option(help="Weights of the finetuned model, START:STOP:STEP or a list.")] = "0:1:0.1",
    head: Annotated[
        Optional[Head],  # noqa: UP045 - typer reads it at run time
        typer.Option(
            help="Head at alpha 0: fitted to the pretrained features, the finetuned one, or the zero-shot head; default: "
            "zero_shot where the model has a text tower, else linear_probe."
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print the report on stdout.")] = False,
) -> None:
    """Average pretrained and finetuned weights; the share is chosen on the validation split."""
    from riftcli.training.wise import parse_alphas, wise_run

    report = wise_run(run, parse_alphas(alphas), None if head is None else head.value, device)
    print(f"alpha {report['wise']['alpha']:g}, chosen by {report['wise']['selected_by']} on validation; test:", file=sys.stderr)
    for name, entry in report["metrics"].items():
        print(f"  {name}: {'undefined' if entry['value'] is None else format(entry['value'], '.4f')}", file=sys.stderr)
    print(f"report: {run / 'wise' / 'metrics.json'}", file=sys.stderr)
    if as_json:
        print(json.dumps(report, indent=1))
