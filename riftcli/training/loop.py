"""The training loop: epochs of steps, validation, the choice of the best weights. Read it from top to bottom."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import nn

from riftcli import dist, heartbeat, signals
from riftcli.console import Bar, Stopwatch
from riftcli.data.loader import Batch
from riftcli.errors import StorageError, Terminated
from riftcli.evaluation.scores import score
from riftcli.training.ahead import Ahead, Streams
from riftcli.training.best import keep_model
from riftcli.training.health import StepReport, check_collapse, check_health
from riftcli.training.optim import set_lr
from riftcli.training.progress import Progress
from riftcli.training.retention import trajectory_row
from riftcli.training.state import TrainState, random_state, save, set_random_state
from riftcli.training.step import StepResult


def run_loop(state: TrainState) -> None:
    """Epoch after epoch until the last step, until patience ends, or until a signal comes: then the state is saved."""
    with signals.deferred():
        try:
            try:
                _run(state)
            except signals.StopRequested:
                raise _stopped(state) from None
        except BaseException:
            with suppress(StorageError):  # how the run ended comes first
                state.writer.close()
            raise
        state.writer.close()


def _run(state: TrainState) -> None:
    setup, progress, console = state.setup, state.progress, state.console
    epochs = setup.recipe.train.epochs
    if progress.step == 0 and setup.data.splits.val is not None:
        scores = _validate(state)
        progress.start_metrics = {name: entry["value"] for name, entry in scores.items()}
        _log_eval(state, 0, scores, _trajectory(state))
    if progress.unvalidated:
        _end_epoch(state, 0.0)
    batches, beside = None, setup.beside(progress.step)
    while progress.step < setup.total_steps and not _out_of_patience(state):
        if batches is None:  # may encode the training split first: not a part of the speed
            batches = setup.batches.load(progress.step, epochs)
        epoch, first = divmod(progress.step, setup.batches.steps_per_epoch)
        clock = Stopwatch()
        with console.progress(f"epoch {epoch + 1}/{epochs}", setup.batches.steps_per_epoch, start=first) as bar:
            _epoch(state, bar, epoch, itertools.islice(batches, setup.batches.steps_per_epoch - first), beside)
        _end_epoch(state, clock.seconds)


def _end_epoch(state: TrainState, seconds: float) -> None:
    """Evaluate, keep the weights where they are the best, save; and end here where a signal says so."""
    setup, progress, recipe = state.setup, state.progress, state.setup.recipe
    done = progress.step // setup.batches.steps_per_epoch
    progress.unvalidated = True  # for a signal that comes meanwhile: a resumed run begins here
    with setup.averaged():
        if setup.data.splits.val is None:
            progress.best_epoch = done
            keep_model(state, done)
            line = f"epoch {done}/{recipe.train.epochs}: {seconds:.1f} s (no validation split: the last weights are kept)"
            state.console.line(line)
        elif done % recipe.eval.every_epochs == 0 or progress.step == setup.total_steps:
            _select(state, done, seconds)
    progress.unvalidated = False
    save(state)
    stop = signals.received() is not None or (state.out_of_time() and progress.step < setup.total_steps)
    if dist.sum_over_ranks(torch.tensor(float(stop), device=setup.device)):
        raise _terminated(state)


def _out_of_patience(state: TrainState) -> bool:
    patience, worse = state.setup.recipe.eval.patience, state.progress.worse_evals
    if not patience or worse < patience:
        return False
    state.console.line(f"stopping early: {state.setup.recipe.eval.best} has not improved for {worse} evaluations")
    return True


def _stopped(state: TrainState) -> Terminated:
    """Between two steps: what was trained is saved. Collective."""
    if state.progress.step:
        save(state)
    return _terminated(state)


def _terminated(state: TrainState) -> Terminated:
    state.writer.close()  # what it says is saved is on the disk
    by = "a signal" if signals.received() or not state.out_of_time() else f"launch.max_time {state.setup.recipe.launch.max_time}"
    return signals.stopped(f"stopped by {by} after step {state.progress.step}; go on with --resume {state.place}")


def _epoch(state: TrainState, bar: Bar, epoch: int, batches: Iterator[Batch], beside: Iterator[dict[str, Batch]]) -> None:
    setup, progress, recipe = state.setup, state.progress, state.setup.recipe
    optimizer = setup.step.optimizer
    assert optimizer is not None
    trainable = [p for p in setup.network.vit.parameters() if p.requires_grad]
    setup.network.classifier.train()
    clock, seen, noted, waited = Stopwatch(), 0, progress.train_seconds, progress.data_seconds
    ahead = Ahead(_streams(batches, beside), setup.device)
    for streams in ahead:
        factor = setup.rate(progress.step)
        set_lr(optimizer, factor)
        result, report = _gradients(state, streams, trainable, ahead)
        progress.step += 1
        progress.data_seconds = waited + ahead.waited
        heartbeat.beat(f"step {progress.step}")
        seen += recipe.train.batch_size
        if progress.step % recipe.train.log_every_steps == 0:  # before the optimizer moves Q: one Q per row
            row = _step_row(state, result, report, factor, epoch + 1, seen / clock.seconds)
            if state.folder:
                state.folder.append(row)
            check_collapse(state, row)
            bar.advance(recipe.train.log_every_steps, _note(row, progress))
        _move(state, result, factor, epoch + 1)
        if (
            report.stop and progress.step % setup.batches.steps_per_epoch
        ):  # at the end of an epoch, run_loop selects and saves first
            progress.train_seconds = noted + clock.seconds
            save(state)
            raise _terminated(state)
        every = recipe.train.save_every_steps
        due = report.save or (every and progress.step % every == 0)
        if due and progress.step % setup.batches.steps_per_epoch:
            progress.train_seconds = noted + clock.seconds
            save(state)
    progress.train_seconds = noted + clock.seconds


def _gradients(
    state: TrainState, streams: Streams, trainable: Sequence[nn.Parameter], ahead: Ahead
) -> tuple[StepResult, StepReport]:
    """Of one step, looked at before anything moves; once more, with a solve, where the inverse behind Q was not close enough.
    Before it is waited for, the next batch is read.
    """
    step, clip, device = state.setup.step, state.setup.recipe.optim.clip_grad, state.setup.device
    assert step.optimizer is not None
    before = None if step.carried is None else random_state(device)
    moved = [] if step.carried is None else list(state.setup.network.vit.buffers())  # running statistics of normalisation
    kept = [own.clone() for own in moved]
    while True:
        step.optimizer.zero_grad(set_to_none=True)
        result = step(streams, state.progress.step)
        grad_norm = nn.utils.clip_grad_norm_(trainable, clip or math.inf)
        ahead.fetch()
        report = check_health(state, result, grad_norm, streams["task"][2])
        if not report.repeat:
            step.observe(result)
            return result, report
        assert step.carried is not None and before is not None
        step.carried.solve()
        for own, value in zip(moved, kept, strict=True):
            own.copy_(value)
        set_random_state(before, device)  # a run that is resumed here has a fresh inverse, and no second try


def _streams(batches: Iterator[Batch], beside: Iterator[dict[str, Batch]]) -> Iterator[dict[str, Batch]]:
    """The batches of every stream."""
    for batch in batches:
        yield {"task": batch, **next(beside)}


def _move(state: TrainState, result: StepResult, factor: float, epoch: int) -> None:
    """The optimizer's step, and what follows from it: the projection, and the strength of the next step."""
    setup, progress = state.setup, state.progress
    assert setup.step.optimizer is not None
    if setup.projection:
        setup.projection.before_step()
    setup.step.optimizer.step()
    if setup.step.carried is not None:
        setup.step.carried.follow()
    if setup.projection:
        setup.projection.after_step()
    if setup.step.penalty is not None and hasattr(setup.step.penalty, "after_step"):
        setup.step.penalty.after_step(progress.step)
    if getattr(setup.recipe.objective, "clamp_scale", False):
        setup.network.vit.text_tower.clamp_scale()
    if setup.average:
        setup.average.after_step(progress.step)
    if not state.steering:
        return
    measured = state.steering.after_step(progress.step, factor, result)
    if measured is not None and state.folder:
        state.folder.append({"kind": "strength", "step": progress.step, "epoch": epoch, **measured})


# ---- what is logged


def _step_row(
    state: TrainState, result: StepResult, report: StepReport, factor: float, epoch: int, speed: float
) -> dict[str, Any]:
    """One line of metrics.jsonl."""
    setup, progress, task, added = state.setup, state.progress, report.task_loss, report.penalty_loss
    step = progress.step
    row: dict[str, Any] = {"kind": "step", "step": step, "epoch": epoch, "loss": task + added, "task_loss": task}
    if setup.step.regularizer is not None:
        row["penalty_loss"] = added
        if state.steering:
            row["strength"] = state.steering.control.strength
        named = setup.step.diagnostics(result) if setup.diagnosed(step) else {}
        row |= {name: value if math.isfinite(value) else None for name, value in named.items()}
    if getattr(setup.step.penalty, "needs_pretrained", False):  # relative to those of the batch, as at the last look
        if row.get("trace_ratio"):
            progress.variance_0 = report.variance / row["trace_ratio"]
        variance_0 = progress.variance_0
    else:
        variance_0 = setup.pretrained.trace_0
    if variance_0 and "trace_ratio" not in row and len(result.features) > 1:
        ratio = report.variance / variance_0
        row["trace_ratio"] = ratio if math.isfinite(ratio) else None
    lr = setup.recipe.optim.lr * factor
    return {**row, "lr": lr, "grad_norm": report.grad_norm, "images_per_second": round(speed, 1)}


def _note(row: dict[str, Any], progress: Progress) -> str:
    """The moving part of the progress bar."""
    bits = [f"loss {row['loss']:.3f}", f"task {row['task_loss']:.3f}"]
    if "penalty_loss" in row:
        bits.append(f"similarity loss {row['penalty_loss']:.3f}")
    similarity = row.get("batch_cka", progress.last_cka)
    if similarity is not None:
        bits.append(f"cka {similarity:.3f}")
    return "  ".join([*bits, f"{row['images_per_second']:.0f} img/s"])


# ---- after an epoch


def _validate(state: TrainState) -> dict[str, dict[str, Any]]:
    setup = state.setup
    assert setup.data.splits.val is not None
    return score(setup.recipe.watched, setup.predict(setup.data.splits.val, "val", again=True))


def _select(state: TrainState, epoch: int, seconds: float) -> None:
    """Validate, and keep the weights if the chosen metric improved in its own direction. NaN or null is never best."""
    progress, scores = state.progress, _validate(state)
    retained = _trajectory(state)
    entry = scores[state.setup.recipe.eval.best]
    value, sign = entry["value"], 1 if entry["higher_is_better"] else -1
    usable = value is not None and math.isfinite(value) and _keeps_enough(state, scores)
    if usable and (progress.best_value is None or sign * value > sign * progress.best_value):
        progress.best_value, progress.best_epoch, progress.worse_evals = value, epoch, 0
        progress.best_metrics = {name: score["value"] for name, score in scores.items()}
        keep_model(state, epoch)
    else:
        progress.worse_evals += 1
        if progress.best_value is None:  # nothing usable yet: if it stays so, the last weights are kept, with these scores
            progress.best_metrics = {name: score["value"] for name, score in scores.items()}
    _log_eval(state, epoch, scores, retained, seconds)


def _trajectory(state: TrainState) -> dict[str, Any]:
    return trajectory_row(state.setup) if state.setup.recipe.eval.trajectory else {}


def _keeps_enough(state: TrainState, scores: dict[str, dict[str, Any]]) -> bool:
    """False for weights that keep less than a strength rule was asked for: they are no candidates."""
    rule = state.setup.recipe.strength
    if rule is None or rule.wants != "similarity":
        return True
    kept = scores["cka_debiased"]["value"]
    return kept is not None and kept >= rule.keep - rule.tolerance


def _log_eval(
    state: TrainState, epoch: int, scores: dict[str, dict[str, Any]], retained: dict[str, Any], seconds: float = 0.0
) -> None:
    values = {name: score["value"] for name, score in scores.items()} | retained
    state.progress.last_cka = values.get("cka")
    if state.steering:
        state.steering.latest = values.get("cka_debiased")
    if state.folder:
        state.folder.append({"kind": "eval", "step": state.progress.step, "epoch": epoch, "split": "val", **values})
    shown = ", ".join(f"{name} {'undefined' if v is None else f'{v:.4f}'}" for name, v in values.items())
    best = " (best)" if epoch and state.progress.best_epoch == epoch else ""
    took = f", {seconds:.1f} s" if seconds else ""
    state.console.line(f"epoch {epoch}/{state.setup.recipe.train.epochs}: validation {shown}{best}{took}")
