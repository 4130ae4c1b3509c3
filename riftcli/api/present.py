"""Evaluation writes numbers, report draws pictures; here the two are joined: a run's page, and what it lacks."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from riftcli.console import Console
from riftcli.errors import UsageError
from riftcli.evaluation.candidates import Candidate, open_run
from riftcli.evaluation.data_sets import EvalData
from riftcli.evaluation.encoder import Encoder
from riftcli.evaluation.evaluate import evaluate_run
from riftcli.evaluation.metrics_json import eval_name
from riftcli.report.card import write_card
from riftcli.report.missing import missing_parts
from riftcli.report.page import write_page
from riftcli.report.plots.curves import plot_run
from riftcli.report.plots.reliability import plot_reliability
from riftcli.runs.reader import read_report
from riftcli.runs.result_table import ResultTable, write_into_runs

SAMPLE = 6  # images of an attention picture


def present_run(run: Path, console: Console) -> bool:
    """Pictures and page of a finished run; False, with a warning, where that fails: it takes nothing from the run."""
    try:
        plot_run(run)
        plot_reliability(run / "eval" / eval_name(read_report(run)))
        write_page(run / "report.html", [open_run(run, [])])
        write_card(run)
    except Exception as error:
        console.warn(f"{run}: the run is complete, its page is not ({type(error).__name__}: {error}); try `rift report {run}`")
        return False
    return True


def evaluate_and_draw(
    run: Path,
    metrics: Sequence[str],
    split: str,
    overrides: Sequence[str],
    device: str = "auto",
    temperature: bool = False,
    console: Console | None = None,
) -> dict[str, Any]:
    """The report of evaluate_run, with its reliability diagram beside it; collective."""
    from riftcli import dist

    report = evaluate_run(run, metrics, split, overrides, device, temperature, console)
    if dist.is_main() and report["unwritten"] is None:
        plot_reliability(Path(report["written_to"]).parent, report.get("temperature", {}).get("value"))
    return report


def draw_table(evaluator: Any, report: Path, table: ResultTable, candidates: Sequence[Candidate]) -> list[Path]:
    """The pictures of an evaluation beside its written report, by the function that the evaluator names in `plot`."""
    module, _, name = getattr(evaluator, "plot", "").partition(":")
    return getattr(importlib.import_module(module), name)(report, table, candidates) if module else []


def fill(candidates: Sequence[Candidate], overrides: Sequence[str], device: torch.device) -> None:
    """Measure what each run's page lacks, in one process. What a model does not offer is told and left out."""
    console = Console()
    for candidate in candidates:
        assert candidate.folder is not None
        encoder = Encoder.of_recipe(candidate.recipe, device, console)
        parts = _parts(candidate, EvalData.of_run(candidate), encoder, overrides)
        for part in missing_parts(candidate.folder):
            console.line(f"{candidate.label}: {part}")
            try:
                parts[part]()
            except UsageError as error:
                console.warn(f"{candidate.label}: no {part}: {error}")


def _parts(candidate: Candidate, source: EvalData, encoder: Encoder, overrides: Sequence[str]) -> dict[str, Callable[[], object]]:
    from riftcli.evaluation.evaluators.attention import Attention
    from riftcli.evaluation.evaluators.sharpness import Sharpness
    from riftcli.evaluation.evaluators.similarity import DEFAULT, Similarity

    run = candidate.folder
    assert run is not None
    place = {candidate.label: run}

    def measured(evaluator: Any) -> None:
        table = evaluator.measure([candidate], [source], encoder)
        for path in write_into_runs(table, place, None):
            draw_table(evaluator, path, table, [candidate])

    similarity = Similarity((*DEFAULT, "centre_distance", "overlap"), all_layers=True, maps=True)
    return {
        "calibration": lambda: evaluate_and_draw(run, [], "test", list(overrides), str(encoder.device)),
        "similarity": lambda: measured(similarity),
        "sharpness": lambda: measured(Sharpness()),
        "attention": lambda: measured(Attention(count=SAMPLE, heads=False)),
    }
