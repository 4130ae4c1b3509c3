"""Measure what a report page would show and a run does not have yet. One process."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors import safe_open

from riftcli.console import Console
from riftcli.errors import UsageError
from riftcli.evaluation.candidates import Subject
from riftcli.evaluation.data_sets import DataSet
from riftcli.evaluation.encoder import Encoder
from riftcli.evaluation.evaluate import evaluate_run
from riftcli.evaluation.evaluators.attention import attention_run, chosen_images, draw
from riftcli.evaluation.evaluators.sharpness import sharpness_run
from riftcli.evaluation.evaluators.similarity import DEFAULT, Question, similarity_run
from riftcli.evaluation.metrics_json import eval_name
from riftcli.functional.sharpness import Ascent
from riftcli.runs.reader import read_json, read_report
from riftcli.runs.result_table import leave

SAMPLE = 6  # images of an attention picture
COMMANDS = {
    "calibration": "rift eval --run {run}",
    "similarity": "rift similarity --run {run} --layers all --map",
    "sharpness": "rift sharpness --run {run}",
    "attention": "rift attention --run {run}",
}


def lacking(run: Path) -> list[str]:
    """Parts of a page that nobody measured on the test split of this run; no attention of networks that have none."""
    name = eval_name(read_report(run))
    with safe_open(run / "model" / "model.safetensors", "pt") as weights:
        attends = any(re.match(r"blocks\.\d+\.attn\.", key) for key in weights.keys())  # noqa: SIM118 - the file is no mapping

    def has(path: Path, *keys: str) -> bool:
        return path.is_file() and all(read_json(path).get(key) for key in keys)

    there = {
        "calibration": (run / "eval" / name / "reliability.csv").is_file(),
        "similarity": has(run / "similarity" / name / "metrics.json", "rows", "layers", "map"),
        "sharpness": has(run / "sharpness" / name / "metrics.json", "rows"),
        "attention": has(run / "attention" / name / "metrics.json", "rows"),
    }
    return [part for part, found in there.items() if not found and (attends or part != "attention")]


def fill(subjects: Sequence[Subject], overrides: Sequence[str], device: torch.device) -> None:
    """Measure what each run lacks. What a model does not offer is told and left out."""
    console = Console()
    for subject in subjects:
        assert subject.folder is not None
        encoder = Encoder.of_recipe(subject.recipe, device, console)
        parts = _parts(subject, DataSet.of_run(subject), encoder, overrides)
        for part in lacking(subject.folder):
            console.line(f"{subject.label}: {part}")
            try:
                parts[part]()
            except UsageError as error:
                console.warn(f"{subject.label}: no {part}: {error}")


def _parts(subject: Subject, source: DataSet, encoder: Encoder, overrides: Sequence[str]) -> dict[str, Callable[[], object]]:
    run = subject.folder
    assert run is not None
    place = {subject.label: run}
    question = Question((*DEFAULT, "centre_distance", "overlap"), all_layers=True, maps=True)

    def attention() -> None:
        chosen = chosen_images(source, "test", SAMPLE, 0, [], encoder)
        findings, pictures = attention_run([subject], source, chosen, -1, encoder)
        for path in leave(findings, place, None):
            draw(path.with_name("attention.png"), pictures, [*pictures["maps"]], heads=False)

    return {
        "calibration": lambda: evaluate_run(run, [], "test", list(overrides), str(encoder.device)),
        "similarity": lambda: leave(similarity_run([subject], None, [source], question, encoder), place, None),
        "sharpness": lambda: leave(sharpness_run([subject], None, "test", Ascent(), encoder), place, None),
        "attention": attention,
    }
