"""finetune(): from a recipe to a finished run folder. Read it from top to bottom."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch

from riftcli import dist, heartbeat, launch, signals
from riftcli import recipe as recipes
from riftcli.console import Console, Stopwatch
from riftcli.errors import RiftError, Terminated
from riftcli.evaluation.metrics_json import eval_name
from riftcli.files import write_json
from riftcli.models.weights import saved_weights
from riftcli.recipe import Recipe
from riftcli.runs import folder as runs
from riftcli.runs import provenance
from riftcli.training.best import keep_model
from riftcli.training.checkpoint import any_saved
from riftcli.training.final import final_report, summary
from riftcli.training.loop import run_loop
from riftcli.training.progress import Progress
from riftcli.training.setup import set_up
from riftcli.training.state import TrainState, begin_again, inputs, restore
from riftcli.training.strength import Steering
from riftcli.training.watching import require_trackers, watched

Present = Callable[[Path, Console], bool]
Beginning = Literal["new", "resume", "again"]  # again: a run that was interrupted before its first checkpoint


def finetune(
    recipe: Recipe,
    out: Path | None = None,
    resume: Path | None = None,
    overwrite: bool = False,
    device: str = "auto",
    console: Console | None = None,
    present: Present = lambda run, console: False,
) -> dict[str, Any]:
    """Train, evaluate and report; return the final report. Every rank calls this; rank 0 writes and prints.

    present: draws the finished folder before the run is noted as completed, so that one that was stopped meanwhile can be
    resumed and gets its page; returns whether there is one.

    What can be checked is checked before anything is written: a wrong recipe, data set or model leaves no folder behind,
    and with `overwrite` the old run stays until then.
    """
    require_trackers(recipe.train.track)
    heartbeat.set_limit(recipe.launch.timeout)
    torch_device = dist.init(device)
    console = console or Console(quiet=not dist.is_main())
    folder, how = _open_folder(recipe, out, resume, overwrite)
    try:
        with signals.handled():
            return _finetune(recipe, folder, how, torch_device, console, present)
    except BaseException as error:
        if folder:
            folder.end_badly(error)
            if isinstance(error, Terminated) and folder.started and "--resume" not in str(error):
                raise type(error)(f"{error}; go on with --resume {folder.path}") from None
        raise
    finally:
        console.close()
        if folder:
            folder.close()


def _finetune(
    recipe: Recipe,
    folder: runs.RunFolder | None,
    how: Beginning,
    device: torch.device,
    console: Console,
    present: Present,
) -> dict[str, Any]:
    clock = Stopwatch()
    setup = set_up(recipe, device, console, resuming=how == "resume", accept=how != "new")
    steering = Steering(setup) if recipe.strength is not None else None
    state = TrainState(setup, Progress(), folder, console, steering)
    if folder and how == "new":
        made_by = provenance.provenance(setup.environment())
        about = {"recipe": recipe.name, **made_by, **inputs(setup), "resolved": recipes.flatten(recipe.resolved)}
        folder.start(recipe.text, recipes.dump(recipe.resolved), about)
    place = Path(dist.broadcast_object(str(folder.path) if folder else None))
    log = place / "train.log" if dist.is_main() else place / "logs" / f"rank{dist.rank()}.log"
    launch.log_errors_to(log)
    console.log_to(log)
    console.line(f"run folder: {place}")
    if how == "resume":
        restore(state)
    elif how == "again":
        begin_again(state)

    try:
        with watched(recipe.train.track, folder, recipe.resolved, state.progress.step, console):
            run_loop(state)
    finally:
        if setup.data.images is not None:
            setup.data.images.release()

    if dist.broadcast_object(folder is not None and saved_weights(folder.path / "model") is None):
        with setup.averaged():
            keep_model(state, state.progress.step // setup.batches.steps_per_epoch)  # no evaluation was usable: the last weights
    report = final_report(state)
    if folder:
        report["timing"]["seconds"] = clock.seconds
        write_json(folder.path / "metrics.json", report)
        write_json(folder.path / "eval" / eval_name(report) / "metrics.json", report)
        has_page = present(folder.path, console)
        folder.update(status="completed", finished=provenance.now(), steps=state.progress.step)
        console.line(summary(report))
        console.line(
            f"report: {folder.path / 'metrics.json'}" + " and report.html beside it" * has_page + next_steps(folder.path)
        )
    dist.barrier()
    return report


def next_steps(run: Path) -> str:
    """Three commands that people go on with, to paste."""
    return f"; next: rift predict {run} IMAGES, rift similarity --run {run} --layers all --map, rift compare {run} OTHER_RUN"


def _open_folder(
    recipe: Recipe, out: Path | None, resume: Path | None, overwrite: bool
) -> tuple[runs.RunFolder | None, Beginning]:
    """(the folder, on rank 0, which opens it; how the run begins). A failure there is every rank's.

    Workers that an elastic launcher started once more go on with the run that they had begun.
    """
    folder, error = None, None
    if dist.is_main() and resume is None and provenance.restarted():
        resume = runs.begun_by(provenance.launcher(), out)
    if dist.is_main():
        try:
            if resume is not None:
                folder = runs.RunFolder.reopen(resume)
            else:
                folder = runs.RunFolder.create(out or runs.default_folder(recipe.name, recipe.train.seed), overwrite)
        except RiftError as caught:
            error = caught
    how: Beginning = "new"
    if resume is not None and dist.is_main():
        how = "resume" if any_saved(resume / "last") else "again"
    error, how = dist.broadcast_object((error, how))
    if error is not None:
        raise error
    return folder, how
