"""finetune(): from a recipe to a finished run folder. Read it from top to bottom."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import nn

from riftcli import dist, launch
from riftcli import recipe as recipes
from riftcli.console import Bar, Console, Stopwatch
from riftcli.data.loader import TensorTable, train_loader
from riftcli.data.splits import fingerprint
from riftcli.errors import DivergedError, RiftError, Terminated
from riftcli.evaluation import scores as evaluate
from riftcli.evaluation.candidates import open_run
from riftcli.evaluation.metrics_json import eval_name
from riftcli.recipe import Recipe
from riftcli.report.page import write_page
from riftcli.report.plots.curves import plot_run
from riftcli.runs import folder as runs
from riftcli.runs import provenance
from riftcli.training.best import keep_model
from riftcli.training.final import final_report, summary
from riftcli.training.optim import lr_factor, set_lr
from riftcli.training.retention import trajectory_row
from riftcli.training.setup import set_up
from riftcli.training.state import Progress, Session, StopSignal, restore, save
from riftcli.training.step import StepResult

TRACE_BOUNDS = (1 / 3, 3)  # variance of the features relative to the pretrained ones; outside, something broke


def finetune(
    recipe: Recipe,
    out: Path | None = None,
    resume: Path | None = None,
    overwrite: bool = False,
    device: str = "auto",
    console: Console | None = None,
) -> dict[str, Any]:
    """Train, evaluate and report; return the final report. Every rank calls this; rank 0 writes and prints.

    What can be checked is checked before anything is written: a wrong recipe, data set or model leaves no folder behind,
    and with `overwrite` the old run stays until then.
    """
    torch_device = dist.init(device)
    console = console or Console(quiet=not dist.is_main())
    folder = _open_folder(recipe, out, resume, overwrite)
    stop = StopSignal()
    try:
        return _finetune(recipe, folder, resume is not None, torch_device, console, stop)
    except BaseException as error:
        if folder:
            folder.end_badly(error)
        raise
    finally:
        stop.restore()
        console.close()
        if folder:
            folder.close()


def _finetune(
    recipe: Recipe,
    folder: runs.RunFolder | None,
    resuming: bool,
    device: torch.device,
    console: Console,
    stop: StopSignal,
) -> dict[str, Any]:
    # ---- set-up ------------------------------------------------------------------------------------------------------
    clock = Stopwatch()
    parts = set_up(recipe, device, console, resuming)
    session = Session(parts, Progress(), folder, console, stop)
    if folder and not resuming:
        made_by = provenance.provenance(parts.environment())
        samples = {name: fingerprint(split) for name, split in parts.splits.named().items()}
        folder.start(recipe.text, recipes.dump(recipe.resolved), {"recipe": recipe.name, **made_by, "samples": samples})
    place = Path(dist.broadcast_object(str(folder.path) if folder else None))
    log = place / "train.log" if dist.is_main() else place / "logs" / f"rank{dist.rank()}.log"
    launch.log_errors_to(log)
    console.log_to(log)
    console.line(f"run folder: {place}")
    if resuming:
        restore(session)

    # ---- the loop ----------------------------------------------------------------------------------------------------
    _loop(session)

    # ---- the report --------------------------------------------------------------------------------------------------
    if folder and not (folder.path / "model" / "model.safetensors").is_file():
        keep_model(session, session.progress.step // parts.steps_per_epoch)  # no evaluation was usable: the last weights
    report = final_report(session)
    if folder:
        report["timing"]["seconds"] = clock.seconds
        runs.write_json(folder.path / "metrics.json", report)
        runs.write_json(folder.path / "eval" / eval_name(report) / "metrics.json", report)
        plot_run(folder.path)
        write_page(folder.path / "report.html", [open_run(folder.path, [])])
        folder.update(status="completed", finished=provenance.now(), steps=session.progress.step)
        console.line(summary(report))
        console.line(f"report: {folder.path / 'metrics.json'} and report.html beside it")
    dist.barrier()
    return report


def _loop(session: Session) -> None:
    parts, progress, console = session.parts, session.progress, session.console
    recipe, epochs = parts.recipe, parts.recipe.train.epochs
    if progress.step == 0 and parts.splits.val is not None:
        _log_eval(session, epoch=0, scores=_validate(session))
    while progress.step < parts.total_steps and not _out_of_patience(session):
        epoch, first = divmod(progress.step, parts.steps_per_epoch)
        clock = Stopwatch()
        with console.progress(f"epoch {epoch + 1}/{epochs}", parts.steps_per_epoch, start=first) as bar:
            _epoch(session, bar, epoch, first)
        progress.train_seconds += clock.seconds
        done = epoch + 1
        if parts.splits.val is None:
            progress.best_epoch = done
            keep_model(session, done)
            console.line(f"epoch {done}/{epochs}: {clock.seconds:.1f} s (no validation split: the last weights are kept)")
        elif done % recipe.eval.every_epochs == 0 or progress.step == parts.total_steps:
            _select(session, done, clock.seconds)
        save(session)
        if dist.sum_over_ranks(torch.tensor(float(session.stop.received), device=parts.device)):
            raise _terminated(session)


def _out_of_patience(session: Session) -> bool:
    patience, worse = session.parts.recipe.eval.patience, session.progress.worse_evals
    if not patience or worse < patience:
        return False
    session.console.line(f"stopping early: {session.parts.recipe.eval.best} has not improved for {worse} evaluations")
    return True


def _terminated(session: Session) -> Terminated:
    return Terminated(f"stopped by a signal after step {session.progress.step}; go on with --resume {session.place}")


def _epoch(session: Session, bar: Bar, epoch: int, first_step: int) -> None:
    parts, progress, recipe = session.parts, session.progress, session.parts.recipe
    batches = parts.batches(epoch, first_step)
    data = parts.train_data(epoch)
    workers = 0 if isinstance(data, TensorTable) else recipe.train.workers
    warmup_steps = math.ceil(recipe.schedule.warmup * parts.total_steps)
    trainable = [p for p in parts.vit.parameters() if p.requires_grad]
    parts.classifier.train()
    clock, seen = Stopwatch(), 0
    for inputs, targets, index in train_loader(data, batches, workers):
        factor = lr_factor(progress.step, parts.total_steps, warmup_steps, recipe.schedule.name)
        set_lr(parts.optimizer, factor)
        parts.optimizer.zero_grad(set_to_none=True)
        result = parts.step(inputs, targets, index)
        grad_norm = nn.utils.clip_grad_norm_(trainable, recipe.optim.clip_grad or math.inf)
        stopping = _check_health(session, result, grad_norm, index)
        progress.step += 1
        seen += recipe.train.batch_size
        if progress.step % recipe.train.log_every_steps == 0:  # before the optimizer moves Q: one Q per row
            row = _step_row(session, result, grad_norm, factor, epoch + 1, seen / clock.seconds)
            _warn_collapse(session, row)
            if session.folder:
                session.folder.append(row)
            bar.advance(recipe.train.log_every_steps, _note(row, progress))
        parts.optimizer.step()
        if stopping and progress.step % parts.steps_per_epoch:  # at the end of an epoch, _loop selects and saves first
            progress.train_seconds += clock.seconds
            save(session)
            raise _terminated(session)
        every = recipe.train.save_every_steps
        if every and progress.step % every == 0 and progress.step % parts.steps_per_epoch:
            save(session)


# =====================================================================================================================
# after a step


def _check_health(session: Session, result: StepResult, grad_norm: torch.Tensor, index: torch.Tensor) -> bool:
    """Raise DivergedError on all ranks, before the optimizer moves, if any loss or gradient is not finite.

    Returns True when any rank was told to stop. One small exchange per step serves both questions.
    """
    health = result.task_loss + result.penalty_loss + grad_norm
    for parameter in session.parts.penalty.parameters() if session.parts.penalty else []:
        if parameter.grad is not None:
            health = health + parameter.grad.sum()
    sick = ~torch.isfinite(health)
    flags = torch.stack([sick.float(), torch.tensor(float(session.stop.received), device=sick.device)])
    any_sick, any_stop = dist.sum_over_ranks(flags).tolist()
    if not any_sick:
        return bool(any_stop)
    losses = {"task": float(result.task_loss), "penalty": float(result.penalty_loss), "grad_norm": float(grad_norm)}
    ids = [session.parts.splits.train.ids[i] for i in index.tolist()]
    ranks = dist.gather_objects({"losses": {k: str(v) for k, v in losses.items()}, "ids": ids})
    if session.folder:
        runs.write_json(session.folder.path / "diverged.json", {"step": session.progress.step + 1, "ranks": ranks})
    shown = ", ".join(f"{name} {value:.4g}" for name, value in losses.items())
    raise DivergedError(
        f"step {session.progress.step + 1}: loss or gradient is not finite ({shown}); the weights were not touched, "
        f"the batch is in {session.place}/diverged.json; try a lower optim.lr, a longer schedule.warmup or train.head_init "
        "linear_probe"
    )


def _step_row(
    session: Session, result: StepResult, grad_norm: torch.Tensor, factor: float, epoch: int, speed: float
) -> dict[str, Any]:
    """One line of metrics.jsonl."""
    parts = session.parts
    task = float(dist.sum_over_ranks(result.task_loss) / dist.world_size())
    added = float(result.penalty_loss)
    row: dict[str, Any] = {"kind": "step", "step": session.progress.step, "epoch": epoch, "loss": task + added, "task_loss": task}
    if parts.penalty is not None:
        row["penalty_loss"] = added
        named = parts.penalty.diagnostics(result.features, result.reference)
        row |= {name: value if math.isfinite(value) else None for name, value in named.items()}
    if parts.trace_0 and "trace_ratio" not in row:
        ratio = float(result.features.var(0).sum()) / parts.trace_0
        row["trace_ratio"] = ratio if math.isfinite(ratio) else None
    lr = parts.recipe.optim.lr * factor
    return {**row, "lr": lr, "grad_norm": float(grad_norm), "images_per_second": round(speed, 1)}


def _note(row: dict[str, Any], progress: Progress) -> str:
    """The moving part of the progress bar."""
    bits = [f"loss {row['loss']:.3f}", f"task {row['task_loss']:.3f}"]
    if "penalty_loss" in row:
        bits.append(f"similarity loss {row['penalty_loss']:.3f}")
    similarity = row.get("batch_cka", progress.last_cka)
    if similarity is not None:
        bits.append(f"cka {similarity:.3f}")
    return "  ".join([*bits, f"{row['images_per_second']:.0f} img/s"])


def _warn_collapse(session: Session, row: dict[str, Any]) -> None:
    """Once and clearly: one careless step can do it (random head, high rate, short warm-up)."""
    ratio = row.get("trace_ratio", 1.0)
    low, high = TRACE_BOUNDS
    if session.progress.warned or (ratio is not None and low <= ratio <= high):
        return
    session.progress.warned = True
    how = "exploded" if ratio is None or ratio > high else "collapsed"
    times = "no finite number of" if ratio is None else f"{ratio:.2f}"
    session.console.warn(
        f"step {row['step']}: the representation has {how}: the variance of the features is {times} times the pretrained one. "
        "What helps: train.head_init linear_probe, a lower optim.lr (<= 4e-5), schedule.warmup 0.1 to 0.15, "
        "optim.clip_grad 1.0, regularizer.normalize relative"
    )


# =====================================================================================================================
# after an epoch


def _validate(session: Session) -> dict[str, dict[str, Any]]:
    parts = session.parts
    assert parts.splits.val is not None
    return evaluate.score(parts.recipe.watched, parts.predict(parts.splits.val, "val"))


def _select(session: Session, epoch: int, seconds: float) -> None:
    """Validate, and keep the weights if the chosen metric improved in its own direction. NaN or null is never best."""
    progress, scores = session.progress, _validate(session)
    entry = scores[session.parts.recipe.eval.best]
    value, sign = entry["value"], 1 if entry["higher_is_better"] else -1
    usable = value is not None and math.isfinite(value)
    if usable and (progress.best_value is None or sign * value > sign * progress.best_value):
        progress.best_value, progress.best_epoch, progress.worse_evals = value, epoch, 0
        progress.best_metrics = {name: score["value"] for name, score in scores.items()}
        keep_model(session, epoch)
    else:
        progress.worse_evals += 1
        if progress.best_value is None:  # nothing usable yet: if it stays so, the last weights are kept, with these scores
            progress.best_metrics = {name: score["value"] for name, score in scores.items()}
    _log_eval(session, epoch, scores, seconds)


def _log_eval(session: Session, epoch: int, scores: dict[str, dict[str, Any]], seconds: float = 0.0) -> None:
    values = {name: score["value"] for name, score in scores.items()}
    if session.parts.recipe.eval.trajectory:
        values |= trajectory_row(session.parts)
    session.progress.last_cka = values.get("cka")
    if session.folder:
        session.folder.append({"kind": "eval", "step": session.progress.step, "epoch": epoch, "split": "val", **values})
    shown = ", ".join(f"{name} {'undefined' if v is None else f'{v:.4f}'}" for name, v in values.items())
    best = " (best)" if epoch and session.progress.best_epoch == epoch else ""
    took = f", {seconds:.1f} s" if seconds else ""
    session.console.line(f"epoch {epoch}/{session.parts.recipe.train.epochs}: validation {shown}{best}{took}")


# =====================================================================================================================
# the folder


def _open_folder(recipe: Recipe, out: Path | None, resume: Path | None, overwrite: bool) -> runs.RunFolder | None:
    """Rank 0 opens the folder; a failure there is every rank's."""
    folder, error = None, None
    if dist.is_main():
        try:
            if resume is not None:
                folder = runs.RunFolder.reopen(resume)
            else:
                folder = runs.RunFolder.create(out or runs.default_folder(recipe.name, recipe.train.seed), overwrite)
        except RiftError as caught:
            error = caught
    shared = dist.broadcast_object(error)
    if shared is not None:
        raise shared
    return folder
