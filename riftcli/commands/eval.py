"""rift eval."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Optional

import typer

OptionalPath = Optional[Path]  # noqa: UP045 - typer reads it at run time


def evaluate(
    run: Annotated[OptionalPath, typer.Option(help="A run, or the model/ of one; default: the newest finished run.")] = None,
    metrics: Annotated[str, typer.Option(help="Comma-separated, e.g. acc,cka,ece; default: the recipe's.")] = "",
    split: Annotated[str, typer.Option(help="train, val, test, or any split of the data source.")] = "test",
    overrides: Annotated[
        list[str], typer.Option("--set", metavar="KEY=VALUE", help="Evaluate on other data: --set data.root=...")
    ] = [],  # noqa: B006 - typer copies it
    temperature: Annotated[
        bool, typer.Option("--temperature-scaling", help="Fit a temperature on validation; report calibration with it.")
    ] = False,
    ensemble: Annotated[
        bool, typer.Option("--ensemble", help="--run is a folder of --repeats or --folds: the mean of all its runs.")
    ] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print the report on stdout.")] = False,
) -> None:
    """Evaluate a finished run on a split of its data."""
    from riftcli.runs import folder as runs

    if run is None:
        run = runs.newest_finished()
        print(f"run: {run} (the newest finished one)", file=sys.stderr)

    from riftcli import dist
    from riftcli.api.present import evaluate_and_draw
    from riftcli.commands.common import note_unfinished, unwritten
    from riftcli.errors import UsageError
    from riftcli.evaluation.evaluate import evaluate_ensemble

    note_unfinished([run.parent if run.name == "model" else run])

    names = [m.strip() for m in metrics.split(",") if m.strip()]
    if ensemble and temperature:
        raise UsageError("--ensemble does not go together with --temperature-scaling")
    if ensemble:
        report = evaluate_ensemble(run, names, split, overrides, device)
    else:
        report = evaluate_and_draw(run, names, split, overrides, device, temperature)
    main = dist.is_main()
    dist.close()
    if not main:
        return
    for name, entry in report["metrics"].items():
        value = f"undefined ({entry.get('reason')})" if entry["value"] is None else f"{entry['value']:.4f}"
        print(f"{name}: {value}", file=sys.stderr)
    if temperature:
        scaled = report["temperature"]
        found = ", ".join(f"{name} {entry['value']:.4f}" for name, entry in scaled["metrics"].items())
        print(f"with temperature {scaled['value']:.3f}, fitted on {scaled['fitted_on']}: {found}", file=sys.stderr)
    if as_json:
        print(json.dumps({k: v for k, v in report.items() if k not in ("written_to", "unwritten")}, indent=1))
    if report["unwritten"] is not None:
        raise unwritten(report["unwritten"], "copy the run to a place of your own, or use --json")
    print(f"report: {report['written_to']}", file=sys.stderr)
