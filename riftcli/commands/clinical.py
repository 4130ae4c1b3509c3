"""rift clinical."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated, Any

import typer

from riftcli.commands.common import AsJson, DataSets, Device, Out, Overrides, Runs, Split

if TYPE_CHECKING:
    from riftcli.runs.result_table import ResultTable

SHOWN = ("sensitivity", "specificity", "ppv", "npv", "f1", "accuracy")


def clinical(
    run: Runs = [],  # noqa: B006 - typer copies it
    data: DataSets = [],  # noqa: B006
    split: Split = "test",
    group: Annotated[
        str, typer.Option(help="Column that is drawn whole, e.g. patient; default: the recipe's, else images.")
    ] = "",
    draws: Annotated[int, typer.Option(min=100, help="Of the bootstrap.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Of the bootstrap.")] = 0,
    overrides: Overrides = [],  # noqa: B006
    device: Device = "auto",
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """A model as a diagnostic test: sensitivity, specificity, PPV, NPV per class with intervals; ROC, PR, net benefit."""
    from riftcli.commands import common
    from riftcli.evaluation.evaluators.clinical import Clinical

    common.check_out(out)
    evaluator = Clinical(split, group, draws, seed)
    candidates = common.measure_beside_pretrained(
        evaluator, print_clinical, run, [], data, overrides, False, device, out, as_json
    )
    if os.environ.get("RANK", "0") == "0":
        from riftcli.report.card import refresh_cards

        refresh_cards([candidate.folder for candidate in candidates if candidate.is_run and candidate.folder])  # they name it


def print_clinical(table: ResultTable) -> None:
    """One grid per model and data set: classes down, AUROC and the rates at the threshold chosen on validation (else 0.5)."""
    from riftcli.console import print_grid

    for model, data in dict.fromkeys((row["model"], row["data"]) for row in table.rows):
        rows = [row for row in table.rows if (row["model"], row["data"]) == (model, data)]
        lines = []
        for name in dict.fromkeys(row["class"] for row in rows):
            mine = [row for row in rows if row["class"] == name]
            rule = "validation" if any(row["rule"] == "validation" for row in mine) else "0.5"
            own = {row["measure"]: row for row in mine if row["rule"] in ("", rule)}
            at = next((row["threshold"] for row in own.values() if row["threshold"] is not None), None)
            counted = "" if mine[0]["negatives"] is None else f"{mine[0]['positives']} / {mine[0]['negatives']}"
            lines.append([name, counted, "" if at is None else f"{at:.3f}", *(_text(own.get(key)) for key in ("auroc", *SHOWN))])
        chosen = any(row["rule"] == "validation" for row in rows)
        how = "thresholds chosen on validation, 0.5 without" if chosen else "threshold 0.5: no validation images beside these"
        print_grid(
            f"{model} on {data} {rows[0]['split']}: 95 % intervals from {table.settings['draws']} draws of "
            f"{table.settings['drawn'][data]}s; {how}",
            ["class", "with / without", "threshold", "AUROC", *SHOWN],
            lines,
        )


def _text(row: dict[str, Any] | None) -> str:
    if row is None:
        return ""
    if row["value"] is None:
        return "undefined"
    around = "" if row["low"] is None else f" ({row['low']:.3f} to {row['high']:.3f})"
    return f"{row['value']:.3f}{around}"
