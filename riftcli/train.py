"""finetune(): from a recipe to a finished run folder. Read it from top to bottom."""

from __future__ import annotations

import math
import signal
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from riftcli import checkpoint, dist, evaluate
from riftcli import recipe as recipes
from riftcli import run as runs
from riftcli.console import Bar, Console, Stopwatch
from riftcli.errors import DivergedError, RiftError, Terminated, UsageError
from riftcli.features import Table
from riftcli.loader import ImageDataset, TensorTable, divide_batch, epoch_batches, steps_per_epoch, train_loader
from riftcli.model import (
    Backbone,
    Classifier,
    HeadOnly,
    fit_head,
    frozen_copy,
    reset_head,
    save_folder,
    sha256,
    zero_head,
)
from riftcli.optim import build_optimizer, lr_factor, set_lr
from riftcli.protocols import Penalty, PenaltyContext, Split
from riftcli.recipe import Recipe
from riftcli.splits import Splits, load_splits
from riftcli.step import Step, StepResult
from riftcli.transforms import EvalTransform, Preprocessing, TrainTransform, sample_seed

TRACE_BOUNDS = (1 / 3, 3)  # outside, the representation has collapsed or exploded


@dataclass
class Progress:
    """Where the loop stands: with the tensors of the network, penalty, optimizer and random state, all that resume needs."""

    step: int = 0
    best_value: float | None = None
    best_epoch: int | None = None
    best_metrics: dict[str, Any] = field(default_factory=dict)
    worse_evals: int = 0  # evaluations since the best one
    train_seconds: float = 0.0
    warned: bool = False


@dataclass
class Parts:
    """Everything that is built before the first step."""

    recipe: Recipe
    seed: int
    device: torch.device
    splits: Splits
    preprocessing: Preprocessing
    vit: Any
    classifier: Classifier
    penalty: Penalty | None
    optimizer: torch.optim.Optimizer
    step: Step
    train_data: Callable[[int], Any]  # epoch -> torch Dataset
    references: dict[str, torch.Tensor]  # pretrained features: "val", "test", "retention/0", "retention/0/bank"
    retention: list[tuple[Split, Split | None]]  # (query, bank or None for leave-one-out)
    steps_per_epoch: int
    total_steps: int
    precision: str


def finetune(
    recipe: Recipe,
    out: Path | None = None,
    resume: Path | None = None,
    overwrite: bool = False,
    seed: int | None = None,
    device: str = "auto",
    console: Console | None = None,
) -> dict[str, Any]:
    """Train, evaluate and report; return the final report. Every rank calls this; rank 0 writes and prints."""
    seed = recipe.train.seed if seed is None else seed
    torch_device = dist.init(device)
    console = console or Console(quiet=not dist.is_main())
    folder = _open_folder(recipe, out, resume, overwrite, seed)
    try:
        if folder:
            console.log_to(folder.path / "train.log")
        return _finetune(recipe, folder, resume is not None, seed, torch_device, console)
    except BaseException as error:
        if folder:
            folder.update(**_ending(error))
        raise
    finally:
        console.close()
        if folder:
            folder.close()


def _finetune(
    recipe: Recipe, folder: runs.RunFolder | None, resuming: bool, seed: int, device: torch.device, console: Console
) -> dict[str, Any]:
    # ---- set-up ------------------------------------------------------------------------------------------------------
    clock = Stopwatch()
    if folder and not resuming:
        source = runs.provenance(seed, str(device), dist.world_size())
        folder.start(recipe.text, recipes.dump(recipe.resolved), {"recipe": recipe.name, **source})
    parts = set_up(recipe, seed, device, console, resuming)
    progress = Progress()
    if resuming:
        progress = _restore(parts, folder, console)
    if folder:
        console.line(f"run folder: {folder.path}")

    # ---- the loop ----------------------------------------------------------------------------------------------------
    stop = _StopSignal()
    try:
        _loop(parts, progress, folder, console, stop)
    finally:
        stop.restore()

    # ---- the report --------------------------------------------------------------------------------------------------
    report = _final_report(parts, progress, folder, console)
    if folder:
        report["timing"] |= {"seconds": clock.seconds}
        runs.write_json(folder.path / "metrics.json", report)
        from riftcli.report.curves import plot_run

        plot_run(folder.path)
        folder.update(status="completed", finished=runs.now(), steps=progress.step)
        console.line(summary(report))
        console.line(f"report: {folder.path / 'metrics.json'}")
    dist.barrier()
    return report


# =====================================================================================================================
# set-up


def set_up(recipe: Recipe, seed: int, device: torch.device, console: Console, resuming: bool = False) -> Parts:
    """Data, model, reference, head, adapter, regularizer and optimizer, in that order."""
    torch.manual_seed(seed)
    ranks = dist.world_size()
    micro, accumulation = divide_batch(recipe.train.batch_size, ranks, recipe.train.micro_batch_size)

    # data
    splits = load_splits(recipe.data.source, recipe.data.train, recipe.data.val, recipe.data.test)
    _check_task(recipe, splits)
    train, num_classes = splits.train, len(splits.train.classes)
    per_epoch = steps_per_epoch(len(train), recipe.train.batch_size)
    retention = [_retention_splits(data) for data in recipe.retention]
    console.line(
        f"data: {recipe.data.name}, {len(train)} train, {len(splits.val) if splits.val else 0} validation, "
        f"{len(splits.test)} test, {num_classes} classes"
    )

    # model, still without a head
    backbone = Backbone(**recipe.model.model_dump())
    vit: Any = backbone.build().to(device)
    dist.broadcast_tensors(list(vit.state_dict().values()))  # from scratch, ranks must start from the same bits
    preprocessing = Preprocessing.of_model(vit, recipe.model.image_size, recipe.model.crop_pct)
    bare = Classifier(vit, frozen_backbone=True)

    def encoded(model: nn.Module, split: Split, what: str) -> Table:
        with console.progress(f"encoding {what}", len(split)) as bar:
            return evaluate.encode_split(
                model, split, preprocessing, device, recipe.eval.batch_size, recipe.train.workers, bar.advance
            )

    # the pretrained reference: its features on the evaluation splits, and a frozen copy if every batch needs one
    references: dict[str, torch.Tensor] = {}
    if recipe.needs_reference:
        pretrained = bare
        if not recipe.model.pretrained:
            pretrained = Classifier(Backbone(**{**recipe.model.model_dump(), "pretrained": True}).build().to(device))
        for name, split in _reference_splits(splits, retention).items():
            references[name] = encoded(pretrained, split, f"{name} with the pretrained model").features
        del pretrained

    start_features: dict[str, torch.Tensor] = {}

    def train_features() -> torch.Tensor:
        """(N, D) of the training split before any training: computed once, for whoever asks first."""
        if "train" not in start_features:
            start_features["train"] = encoded(bare, train, "train").features
        return start_features["train"]

    adapter = recipe.adapter
    penalty: Penalty | None = None
    if adapter.trains_backbone:
        penalty = recipe.regularizer.build(PenaltyContext(vit.num_features, device, train_features))
    elif recipe.component_name("regularizer") != "none":
        console.warn("the regularizer has no effect: this adapter freezes the backbone, so its features cannot move")
    reference_fn = None
    if penalty is not None and penalty.needs_reference:
        reference_fn = _batch_reference(recipe, vit, preprocessing, device, train_features)

    # head
    targets = torch.from_numpy(train.targets)
    objective = recipe.objective.build(targets, num_classes)
    reset_head(vit, num_classes, seed)
    vit.to(device)
    if recipe.train.head_init == "zeros":
        zero_head(vit)
    elif recipe.train.head_init == "linear_probe" and not resuming:
        _probe_head(vit, train_features(), targets, objective, console)

    # what trains
    adapter.prepare(vit)
    classifier = Classifier(vit, frozen_backbone=not adapter.trains_backbone)
    cached = not adapter.trains_backbone and recipe.augment.off
    trained: nn.Module = HeadOnly(vit.get_classifier()) if cached else classifier
    if ranks > 1:
        trained = nn.parallel.DistributedDataParallel(trained, broadcast_buffers=False)

    def train_data(epoch: int) -> Any:
        if cached:
            return TensorTable(train_features(), targets)
        return ImageDataset(train, _train_transform(recipe, preprocessing), seed, epoch)

    optimizer = build_optimizer(
        vit,
        penalty.parameters() if penalty else [],
        extra_lr_scale=penalty.lr_scale if penalty else 1.0,
        **{k: v for k, v in recipe.optim.model_dump().items() if k != "clip_grad"},
    )
    bf16 = _use_bf16(recipe.train.precision, device)
    trainable = sum(p.numel() for p in vit.parameters() if p.requires_grad)
    console.line(
        f"model: {recipe.model.name}, {sum(p.numel() for p in vit.parameters()):,} parameters, {trainable:,} trainable; "
        f"{recipe.component_name('adapter')} + {recipe.component_name('regularizer')}"
    )
    console.line(
        f"batch: {recipe.train.batch_size} = {ranks} rank{'s' * (ranks > 1)} x {micro} x {accumulation}; "
        f"{per_epoch} steps x {recipe.train.epochs} epochs on {device}, {'bf16' if bf16 else 'fp32'}"
    )
    torch.manual_seed(sample_seed(seed, dist.rank(), "loop"))  # drop path differs between ranks
    return Parts(
        recipe=recipe,
        seed=seed,
        device=device,
        splits=splits,
        preprocessing=preprocessing,
        vit=vit,
        classifier=classifier,
        penalty=penalty,
        optimizer=optimizer,
        step=Step(
            module=trained,
            objective=objective,
            penalty=penalty,
            prepare=(lambda features: features) if cached else preprocessing.normalise,
            reference=reference_fn,
            device=device,
            bf16=bf16,
            micro_batch_size=micro,
        ),
        train_data=train_data,
        references=references,
        retention=retention,
        steps_per_epoch=per_epoch,
        total_steps=per_epoch * recipe.train.epochs,
        precision="bf16" if bf16 else "fp32",
    )


def _check_task(recipe: Recipe, splits: Splits) -> None:
    if recipe.objective.task != splits.train.task:
        fitting = "bce" if splits.train.task == "multilabel" else "cross_entropy"
        raise UsageError(
            f"objective.name {recipe.component_name('objective')}: the data is {splits.train.task}; "
            f"use --set objective.name={fitting}"
        )


def _retention_splits(data: recipes.Data) -> tuple[Split, Split | None]:
    """(query, bank): the same split twice means leave-one-out."""
    from riftcli.splits import load_split

    query = load_split(data.source, data.test)
    return query, None if data.train == data.test else load_split(data.source, data.train)


def _reference_splits(splits: Splits, retention: list[tuple[Split, Split | None]]) -> dict[str, Split]:
    wanted = {"test": splits.test}
    if splits.val is not None:
        wanted["val"] = splits.val
    for i, (query, bank) in enumerate(retention):
        wanted[f"retention/{i}"] = query
        if bank is not None:
            wanted[f"retention/{i}/bank"] = bank
    return wanted


def _train_transform(recipe: Recipe, preprocessing: Preprocessing) -> Any:
    if recipe.augment.off:
        return EvalTransform(preprocessing)
    return TrainTransform(preprocessing, **recipe.augment.model_dump())


def _batch_reference(
    recipe: Recipe, vit: nn.Module, preprocessing: Preprocessing, device: torch.device, train_features: Any
) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Pretrained features of a batch: looked up when every epoch shows the same pixels, else a second, frozen forward."""
    if recipe.augment.off:
        table = train_features()
        return lambda index, images: table[index].to(device)
    teacher = Classifier(frozen_copy(vit))

    def forward(index: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            return teacher(preprocessing.normalise(images)).features

    return forward


def _probe_head(vit: Any, features: torch.Tensor, targets: torch.Tensor, objective: Any, console: Console) -> None:
    """Fit the head on rank 0 and share it: L-BFGS is not run twice to two roundings."""
    if dist.is_main():
        total = objective.weights(targets).sum()
        loss = fit_head(vit, features, lambda logits: objective.losses(logits, targets).sum() / total)
        console.line(f"head: linear probe on {len(targets)} pretrained features, loss {loss:.3f}")
    dist.broadcast_tensors([p.data for p in vit.get_classifier().parameters()])


def _use_bf16(precision: str, device: torch.device) -> bool:
    if precision == "auto":
        return device.type == "cuda" and torch.cuda.is_bf16_supported()
    return precision == "bf16"


# =====================================================================================================================
# the loop


def _loop(parts: Parts, progress: Progress, folder: Any, console: Console, stop: _StopSignal) -> None:
    recipe, epochs = parts.recipe, parts.recipe.train.epochs
    if progress.step == 0 and parts.splits.val is not None:
        _log_eval(parts, progress, folder, console, epoch=0, scores=_validate(parts))
    while progress.step < parts.total_steps:
        epoch, first = divmod(progress.step, parts.steps_per_epoch)
        clock = Stopwatch()
        with console.progress(f"epoch {epoch + 1}/{epochs}", parts.steps_per_epoch, start=first) as bar:
            _epoch(parts, progress, folder, console, stop, bar, epoch, first)
        progress.train_seconds += clock.seconds
        done = epoch + 1
        if parts.splits.val is None:
            _keep_model(parts, folder, done)
            progress.best_epoch = done
            console.line(f"epoch {done}/{epochs}: {clock.seconds:.1f} s (no validation split: the last weights are kept)")
        elif done % recipe.eval.every_epochs == 0 or progress.step == parts.total_steps:
            _select(parts, progress, folder, console, done, clock.seconds)
        _save(parts, progress, folder)
        if recipe.eval.patience and progress.worse_evals >= recipe.eval.patience:
            console.line(f"stopping early: {recipe.eval.best} has not improved for {progress.worse_evals} evaluations")
            break


def _epoch(
    parts: Parts, progress: Progress, folder: Any, console: Console, stop: _StopSignal, bar: Bar, epoch: int, first: int
) -> None:
    recipe = parts.recipe
    batches = epoch_batches(
        len(parts.splits.train), recipe.train.batch_size, parts.seed, epoch, dist.rank(), dist.world_size(), first
    )
    warmup_steps = math.ceil(recipe.schedule.warmup * parts.total_steps)
    data = parts.train_data(epoch)
    workers = 0 if isinstance(data, TensorTable) else recipe.train.workers
    trainable = [p for p in parts.vit.parameters() if p.requires_grad]
    parts.classifier.train()
    clock, seen = Stopwatch(), 0
    for batch in train_loader(data, batches, workers):
        factor = lr_factor(progress.step, parts.total_steps, warmup_steps, recipe.schedule.name)
        set_lr(parts.optimizer, factor)
        parts.optimizer.zero_grad(set_to_none=True)
        result = parts.step(*batch)
        grad_norm = nn.utils.clip_grad_norm_(trainable, recipe.optim.clip_grad or math.inf)
        stopping = _all_healthy(parts, result, grad_norm, batch[2], progress, folder, stop)
        parts.optimizer.step()
        progress.step += 1
        seen += recipe.train.batch_size
        if progress.step % recipe.train.log_every_steps == 0:
            row = _step_row(parts, progress, result, grad_norm, factor, epoch, seen / clock.seconds)
            _warn_collapse(row, progress, console)
            if folder:
                folder.append(row)
            bar.advance(recipe.train.log_every_steps, _note(row, progress))
        if stopping:
            progress.train_seconds += clock.seconds
            _save(parts, progress, folder)
            raise Terminated(f"stopped by a signal after step {progress.step}; go on with --resume {_path(folder)}")
        every = recipe.train.save_every_steps
        if every and progress.step % every == 0 and progress.step % parts.steps_per_epoch:
            _save(parts, progress, folder)


def _all_healthy(
    parts: Parts,
    result: StepResult,
    grad_norm: torch.Tensor,
    index: torch.Tensor,
    progress: Progress,
    folder: Any,
    stop: Any,
) -> bool:
    """Raise DivergedError on all ranks, before the optimizer moves, if any loss or gradient is not finite.

    Returns True when any rank was told to stop. One small exchange per step serves both questions.
    """
    sick = ~torch.isfinite(result.task_loss + result.penalty_loss + grad_norm)
    flags = torch.stack([sick.float(), torch.tensor(float(stop.received), device=sick.device)])
    any_sick, any_stop = dist.sum_over_ranks(flags).tolist()
    if not any_sick:
        return bool(any_stop)
    losses = {"task": float(result.task_loss), "penalty": float(result.penalty_loss), "grad_norm": float(grad_norm)}
    ids = [parts.splits.train.ids[i] for i in index.tolist()]
    ranks = dist.gather_objects({"losses": {k: str(v) for k, v in losses.items()}, "ids": ids})
    if folder:
        runs.write_json(folder.path / "diverged.json", {"step": progress.step, "ranks": ranks})
    parts_text = ", ".join(f"{name} {value:.4g}" for name, value in losses.items())
    raise DivergedError(
        f"step {progress.step + 1}: loss or gradient is not finite ({parts_text}); the weights of the last checkpoint are "
        f"intact, the batch is in {_path(folder)}/diverged.json; try a lower optim.lr, a longer schedule.warmup or "
        "train.head_init linear_probe"
    )


def _step_row(
    parts: Parts, progress: Progress, result: StepResult, grad_norm: Any, factor: float, epoch: int, speed: float
) -> dict[str, Any]:
    """One line of metrics.jsonl."""
    task = float(dist.sum_over_ranks(result.task_loss) / dist.world_size())
    added = float(result.penalty_loss)
    row: dict[str, Any] = {
        "kind": "step",
        "step": progress.step,
        "epoch": epoch,
        "loss": task + added,
        "task_loss": task,
    }
    if parts.penalty is not None:
        row["penalty_loss"] = added
        row |= _finite(parts.penalty.diagnostics(result.features, result.reference))
    lr = parts.recipe.optim.lr * factor
    return {**row, "lr": lr, "grad_norm": float(grad_norm), "images_per_second": round(speed, 1)}


def _finite(row: dict[str, float]) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in row.items()}


def _note(row: dict[str, Any], progress: Progress) -> str:
    """The moving part of the progress bar."""
    bits = [f"loss {row['loss']:.3f}", f"task {row['task_loss']:.3f}"]
    if "penalty_loss" in row:
        bits.append(f"similarity {row['penalty_loss']:.3f}")
    sim = row.get("batch_cka", progress.best_metrics.get("last_cka"))
    if sim is not None:
        bits.append(f"cka {sim:.3f}")
    return "  ".join([*bits, f"{row['images_per_second']:.0f} img/s"])


def _warn_collapse(row: dict[str, Any], progress: Progress, console: Console) -> None:
    """Once and clearly: one careless step can do it (random head, high rate, short warm-up)."""
    ratio = row.get("trace_ratio", 1.0)
    low, high = TRACE_BOUNDS
    if progress.warned or (ratio is not None and low <= ratio <= high):
        return
    progress.warned = True
    how = "exploded" if ratio is None or ratio > high else "collapsed"
    console.warn(
        f"step {row['step']}: the representation has {how}: the variance of the features is {ratio or math.inf:.2f} times the "
        "pretrained one. What helps: train.head_init linear_probe, a lower optim.lr (<= 4e-5), schedule.warmup 0.1 to 0.15, "
        "optim.clip_grad 1.0, regularizer.normalize relative"
    )


# ---- validation and selection ----------------------------------------------------------------------------------------


def _validate(parts: Parts) -> dict[str, dict[str, Any]]:
    assert parts.splits.val is not None
    return evaluate.score(parts.recipe.eval.metrics, _predictions(parts, parts.splits.val, "val"))


def _predictions(parts: Parts, split: Split, reference: str) -> Any:
    table = evaluate.encode_split(
        parts.classifier,
        split,
        parts.preprocessing,
        parts.device,
        parts.recipe.eval.batch_size,
        parts.recipe.train.workers,
    )
    return evaluate.predictions(split, table, parts.references.get(reference))


def _select(parts: Parts, progress: Progress, folder: Any, console: Console, epoch: int, seconds: float) -> None:
    """Validate, and keep the weights if the chosen metric improved in its own direction. NaN or null is never best."""
    scores = _validate(parts)
    entry = scores[parts.recipe.eval.best]
    value = entry["value"]
    usable = value is not None and math.isfinite(value)
    sign = 1 if entry["higher_is_better"] else -1
    if usable and (progress.best_value is None or sign * value > sign * progress.best_value):
        progress.best_value, progress.best_epoch, progress.worse_evals = value, epoch, 0
        progress.best_metrics = {name: score["value"] for name, score in scores.items()}
        _keep_model(parts, folder, epoch)
    else:
        progress.worse_evals += 1
    progress.best_metrics["last_cka"] = scores.get("cka", {}).get("value")
    _log_eval(parts, progress, folder, console, epoch, scores, seconds)


def _log_eval(
    parts: Parts, progress: Progress, folder: Any, console: Console, epoch: int, scores: dict, seconds: float = 0.0
) -> None:
    values = {name: score["value"] for name, score in scores.items()}
    if folder:
        folder.append({"kind": "eval", "step": progress.step, "epoch": epoch, "split": "val", **values})
    shown = ", ".join(f"{name} {'undefined' if v is None else f'{v:.4f}'}" for name, v in values.items())
    best = " (best)" if epoch and progress.best_epoch == epoch else ""
    took = f", {seconds:.1f} s" if seconds else ""
    console.line(f"epoch {epoch}/{parts.recipe.train.epochs}: validation {shown}{best}{took}")


def _keep_model(parts: Parts, folder: Any, epoch: int) -> None:
    if folder is None:
        return
    from riftcli.report.model_card import model_card

    save_folder(folder.path / "model", parts.vit, parts.splits.train.classes, parts.preprocessing, {"rift": {"epoch": epoch}})
    (folder.path / "model" / "README.md").write_text(model_card(parts.recipe.resolved, epoch), encoding="utf-8")


# ---- saving and resuming ---------------------------------------------------------------------------------------------


def _save(parts: Parts, progress: Progress, folder: Any) -> None:
    """The whole state of the loop; collective, because every rank has its own random state."""
    own = {"cpu": torch.get_rng_state()}
    if parts.device.type == "cuda":
        own["cuda"] = torch.cuda.get_rng_state(parts.device)
    states = dist.gather_objects(own)
    if folder is None:
        return
    optimizer, packed = checkpoint.pack_optimizer(parts.optimizer)
    tensors = {
        "model": parts.vit.state_dict(),
        "optimizer": optimizer,
        "penalty": parts.penalty.state_dict() if parts.penalty else {},
        "random": {f"{rank}/{name}": state for rank, table in enumerate(states) for name, state in table.items()},
    }
    state = {"progress": asdict(progress), "optimizer": packed, "world_size": dist.world_size()}
    checkpoint.save(folder.path / "last", progress.step, tensors, state)


def _restore(parts: Parts, folder: Any, console: Console) -> Progress:
    """Put the newest whole checkpoint back, bit for bit."""
    loaded = None
    if folder:
        loaded = checkpoint.load_newest(folder.path / "last", console.warn)
    tensors, state = dist.broadcast_object(loaded)
    if state["world_size"] != dist.world_size():
        raise UsageError(
            f"--resume: the run was made with {state['world_size']} processes and this is {dist.world_size()}; "
            f"use --nproc-per-node {state['world_size']}"
        )
    parts.vit.load_state_dict(tensors["model"])
    if parts.penalty:
        parts.penalty.load_state_dict(tensors["penalty"])
    checkpoint.unpack_optimizer(parts.optimizer, tensors["optimizer"], state["optimizer"])
    torch.set_rng_state(tensors["random"][f"{dist.rank()}/cpu"])
    if parts.device.type == "cuda":
        torch.cuda.set_rng_state(tensors["random"][f"{dist.rank()}/cuda"], parts.device)
    progress = Progress(**state["progress"])
    if folder:
        folder.truncate_metrics(progress.step)
        folder.update(status="running", resumed=runs.now())
    console.line(f"resuming after step {progress.step} of {parts.total_steps}")
    return progress


def _open_folder(recipe: Recipe, out: Path | None, resume: Path | None, overwrite: bool, seed: int) -> Any:
    """Rank 0 opens the folder; a failure there is every rank's."""
    folder, error = None, None
    if dist.is_main():
        try:
            if resume is not None:
                folder = runs.RunFolder.reopen(resume)
            else:
                folder = runs.RunFolder.create(out or runs.default_folder(recipe.name, seed), overwrite)
        except RiftError as caught:
            error = caught
    shared = dist.broadcast_object(error)
    if shared is not None:
        raise shared
    return folder


class _StopSignal:
    """SIGTERM or SIGUSR1: finish the step, save once, exit 143. A second one kills at once."""

    def __init__(self) -> None:
        self.received = False
        self._old: dict[int, Any] = {}
        for number in (signal.SIGTERM, signal.SIGUSR1):
            try:
                self._old[number] = signal.signal(number, self._handle)
            except ValueError:  # not the main thread: whoever embeds us handles signals
                return

    def _handle(self, number: int, frame: Any) -> None:
        self.received = True
        signal.signal(number, signal.SIG_DFL)

    def restore(self) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)


def _ending(error: BaseException) -> dict[str, Any]:
    stopped = isinstance(error, KeyboardInterrupt | Terminated)
    text = str(error) or type(error).__name__
    return {"status": "interrupted" if stopped else "failed", "finished": runs.now(), "error": text}


def _path(folder: Any) -> str:
    return str(folder.path) if folder else "the run folder"


# =====================================================================================================================
# the report


def _final_report(parts: Parts, progress: Progress, folder: Any, console: Console) -> dict[str, Any]:
    """Test split and retention sets with the kept weights, measured once, at the end."""
    recipe = parts.recipe
    _load_kept(parts, folder)
    seen = _predictions(parts, parts.splits.test, "test")
    model = {
        "path": str(folder.path / "model") if folder else None,
        "architecture": parts.vit.pretrained_cfg["architecture"],
        "method": method(recipe),
        "sha256": sha256(folder.path / "model" / "model.safetensors") if folder else None,
        "weights": "raw",
        "epoch": progress.best_epoch,
        "params": sum(p.numel() for p in parts.vit.parameters()),
        "trainable_params": sum(p.numel() for p in parts.vit.parameters() if p.requires_grad),
    }
    report = evaluate.report("finetune", model, parts.splits.test, seen, recipe.eval.metrics, recipe.data.name)
    report["validation"] = {k: v for k, v in progress.best_metrics.items() if k != "last_cka"}
    report["retention"] = {}
    for i, (query, bank) in enumerate(parts.retention):
        after = _predictions(parts, query, "").features
        tables = None
        if bank is not None:
            tables = (parts.references[f"retention/{i}/bank"], _predictions(parts, bank, "").features)
        entry = evaluate.retained(query, parts.references[f"retention/{i}"], after, recipe.eval.knn_k, bank, tables)
        report["retention"][recipe.retention[i].name] = entry
    images = progress.step * recipe.train.batch_size
    report["timing"] = {
        "train_seconds": progress.train_seconds,
        "images_per_second": images / progress.train_seconds if progress.train_seconds else None,
        "peak_memory_bytes": evaluate.peak_memory_bytes(parts.device),
    }
    report["env"] = evaluate.environment(parts.device, parts.precision, parts.seed)
    if folder:
        evaluate.write_tables(folder.path / "eval" / f"{recipe.data.name}-{parts.splits.test.name}", parts.splits.test, seen)
    return report


def _load_kept(parts: Parts, folder: Any) -> None:
    """The best weights, from rank 0's disk to every rank."""
    from safetensors.torch import load_file

    if folder and (folder.path / "model" / "model.safetensors").is_file():
        parts.vit.load_state_dict(load_file(folder.path / "model" / "model.safetensors"))
    elif folder:
        _keep_model(parts, folder, parts.recipe.train.epochs)  # no evaluation gave a usable number: the last weights
    dist.broadcast_tensors(list(parts.vit.state_dict().values()))


def method(recipe: Recipe) -> dict[str, Any]:
    """What was done, in the words of the catalog."""
    names = {kind: recipe.component_name(kind) for kind in ("objective", "adapter", "regularizer")}
    strength = getattr(recipe.regularizer, "weight", getattr(recipe.regularizer, "strength", None))
    return {**names, "strength": strength, "pretrained": recipe.model.pretrained}


def summary(report: dict[str, Any]) -> str:
    """The last lines of a run: what it cost and what it kept."""
    lines = []
    shown = {"acc": "accuracy", "cka": "CKA to the pretrained model"}
    for name, entry in report["metrics"].items():
        value = "undefined" if entry["value"] is None else f"{entry['value']:.4f}"
        lines.append(f"  {shown.get(name, name)}: {value}")
    for name, entry in report["retention"].items():
        kept = "undefined" if entry["cka"] is None else f"{entry['cka']:.4f}"
        lines.append(f"  kept on {name}: kNN {entry['knn_before']:.4f} before -> {entry['knn_after']:.4f} after, CKA {kept}")
    head = f"test split of {report['data']['name']} ({report['data']['n']} images), weights of epoch {report['model']['epoch']}:"
    return "\n".join([head, *lines])
