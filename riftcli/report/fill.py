"""Measure what a report page would show and a run does not have yet."""

from __future__ import annotations

from collections.abc import Sequence

from riftcli import dist
from riftcli.attention_run import attention_run, chosen_images, draw
from riftcli.console import Console
from riftcli.encoding import DataSet, Encoder
from riftcli.evaluate_run import evaluate_run
from riftcli.report.table import leave
from riftcli.sharpness import Ascent
from riftcli.sharpness_run import sharpness_run
from riftcli.similarity_run import DEFAULT, Question, similarity_run
from riftcli.subjects import Subject

SAMPLE = 6  # images of an attention picture


def fill(subjects: Sequence[Subject], overrides: Sequence[str], device: str) -> None:
    """Calibration, similarity with layers and maps, sharpness and attention of every run, where its folder lacks them."""
    console = Console(quiet=not dist.is_main())
    for subject in subjects:
        run = subject.folder
        assert run is not None
        encoder = Encoder.of_recipe(subject.recipe, dist.init(device), console)
        source = DataSet(subject.recipe.data, subject.recipe.input)
        if not list(run.glob("eval/*/reliability.csv")):
            console.line(f"{subject.label}: calibration")
            evaluate_run(run, [], "test", list(overrides), device)
        if not list(run.glob("similarity/*/metrics.json")):
            console.line(f"{subject.label}: similarity, layers and maps")
            question = Question((*DEFAULT, "centre_distance", "overlap"), all_layers=True, maps=True, intervals=20)
            leave(similarity_run([subject], None, [source], question, encoder), {subject.label: run}, ["data", "split"], None)
        if not list(run.glob("sharpness/*/metrics.json")):
            found = sharpness_run([subject], None, "test", Ascent(), encoder)
            leave(found, {subject.label: run}, ["data", "split", "method"], None)
        if not list(run.glob("attention/*/metrics.json")):
            console.line(f"{subject.label}: attention")
            chosen = chosen_images(source, "test", SAMPLE, 0, [], encoder)
            findings, pictures = attention_run([subject], source, chosen, -1, encoder)
            for path in leave(findings, {subject.label: run}, ["data", "split"], None):
                draw(path.with_name("attention.png"), pictures, [subject.pretrained().label, subject.label], heads=False)
