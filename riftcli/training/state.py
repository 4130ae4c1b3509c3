"""The state of a run: where the loop stands, and how that is saved and put back bit for bit."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from riftcli import dist
from riftcli.console import Console
from riftcli.errors import DataError, DivergedError, ModelError, RiftError, StorageError, UsageError
from riftcli.functional.carried_inverse import unsafe
from riftcli.models.published import check_published
from riftcli.models.sharding import is_sharded, own_state
from riftcli.models.weights import saved_weights
from riftcli.runs import folder as runs
from riftcli.runs import provenance
from riftcli.training import checkpoint
from riftcli.training.progress import Progress
from riftcli.training.saved_state import check_saved_state
from riftcli.training.setup import Setup
from riftcli.training.strength import Steering
from riftcli.training.writer import Writer

Q_DRIFT, Q_LOST = 1e-5, 1e-2  # max |Q^T Q - I| of a learned rotation: said, and the end


@dataclass
class TrainState:
    """What every part of the loop needs at hand. `folder` is None on all ranks but the one that writes."""

    setup: Setup
    progress: Progress
    folder: runs.RunFolder | None
    console: Console
    steering: Steering | None = None
    began: float = field(default_factory=time.monotonic)  # of this command, for launch.max_time
    saved: float = field(default_factory=time.monotonic)  # when the state was last saved
    writer: Writer = field(default_factory=Writer)
    expected: torch.Tensor | None = None  # what the kept weights gave for fixed inputs when they were kept

    def out_of_time(self) -> bool:
        """By this rank's clock: ranks must agree before they act on it."""
        most = self.setup.recipe.launch.max_seconds
        return most is not None and time.monotonic() - self.began > most

    def save_is_due(self) -> bool:
        """By this rank's clock."""
        minutes = self.setup.recipe.launch.save_every_minutes
        return minutes is not None and time.monotonic() - self.saved > 60 * minutes

    @property
    def place(self) -> str:
        """The run folder, for messages."""
        return str(self.folder.path) if self.folder else "the run folder"


def random_state(device: torch.device) -> dict[str, torch.Tensor]:
    """Of this rank's generators, by the kind of device."""
    states = {"cpu": torch.get_rng_state()}
    return states | {"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else states


def set_random_state(states: Mapping[str, torch.Tensor], device: torch.device) -> None:
    """Inverse of random_state."""
    torch.set_rng_state(states["cpu"])
    if "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)


def save(state: TrainState) -> None:
    """Save the whole state of the loop as it is now; collective, because every rank has its own random state. It is written while
    training goes on: whoever needs it on the disk waits for `state.writer`.
    """
    setup, step = state.setup, state.setup.step
    assert step.optimizer is not None
    _check_rotation(state)
    state.saved = time.monotonic()
    states = dist.gather_objects(random_state(setup.device))
    if state.folder is None:
        return
    state.writer.wait("checkpoint")
    optimizer, packed = checkpoint.pack_optimizer(step.optimizer)
    tensors: checkpoint.Tables = {
        "model": own_state(setup.network.vit),
        "optimizer": optimizer,
        "penalty": step.regularizer.state_dict() if step.regularizer else {},
        **({"projection": setup.projection.state_dict()} if setup.projection else {}),
        **({"average": setup.average.state_dict()} if setup.average else {}),
        "random": {f"{rank}/{name}": value for rank, table in enumerate(states) for name, value in table.items()},
    }
    if state.steering:
        state.progress.strength = state.steering.state_dict()
    plain = {
        "progress": asdict(state.progress),
        "optimizer": packed,
        "world_size": dist.world_size(),
        "trace_0": setup.pretrained.trace_0,
    }
    folder, number, copies = state.folder, state.progress.step, state.writer.copies(tensors)

    def write() -> None:
        expected = state.expected if state.expected is not None and bool(state.expected.isfinite().all()) else None
        kept = {"expected": None if expected is None else expected.tolist()}
        checkpoint.save(folder.path / "last", number, copies, plain | kept)
        folder.checkpointed()

    state.writer.submit("checkpoint", write)


def _check_rotation(state: TrainState) -> None:
    """Warn of a learned Q that is no longer orthogonal; raise DivergedError for one that is far from it (F24). The same on
    every rank.
    """
    rotation = getattr(state.setup.step.penalty, "rotation", None)
    if rotation is None or rotation.constraint() is not None:  # none, or one that may stray as far as its constraint lets it
        return
    carried = state.setup.step.carried
    if carried is not None and bool(unsafe(carried.error)):  # as the next step would; what is saved must be finite
        carried.solve()
    error = float(rotation.orthogonality_error())
    if not error <= Q_LOST:
        raise DivergedError(
            f"step {state.progress.step}: Q is not orthogonal any more (max |Q^T Q - I| is {error:.2g}), so the regularizer "
            "compares with nothing; try a lower optim.lr or regularizer.q_lr_scale"
        )
    if error > Q_DRIFT:
        state.console.warn(f"step {state.progress.step}: Q is orthogonal up to {error:.2g} only")


def inputs(setup: Setup) -> dict[str, Any]:
    """Digests of what a run reads, for its run.json: samples and labels, images, weights."""
    data = setup.data
    return {"samples": data.fingerprints(), "contents": data.contents(), "weights": setup.origin}


def _check_inputs(state: TrainState) -> None:
    """Raise DataError or ModelError when data or weights are not what the run started with: it could not go on bitwise."""
    assert state.folder is not None
    started, data, place = runs.read_run(state.folder.path), state.setup.data, state.folder.path
    for key, what, found in (
        ("samples", "samples or labels", data.fingerprints()),
        ("contents", "images (their files have changed)", data.contents()),
    ):
        known = started.get(key) or {}
        for name, now in found.items():
            if name in known and known[name] != now:
                raise DataError(
                    f"--resume {place}: split '{name}' has other {what} than when the run started "
                    f"({len(data.everything()[name])} now); put the data back as it was, or start a new run"
                )
    if started.get("weights") not in (None, state.setup.origin):
        raise ModelError(
            f"--resume {place}: the weights of {state.setup.recipe.model.name} are not those that the run started with; put them "
            "back, or start a new run"
        )


def _load(state: TrainState, folder: runs.RunFolder) -> Any:
    """(tensors, state) of the newest whole checkpoint."""
    _check_inputs(state)

    def check(tensors: checkpoint.Tables, plain: dict[str, Any]) -> None:
        _check_processes(plain.get("world_size"))  # which some of the tensors depend on
        check_saved_state(state.setup, tensors, plain)

    tensors, plain = checkpoint.load_newest(folder.path / "last", state.console.warn, check)
    best = plain["progress"].get("best_epoch")
    if best is not None:
        try:
            check_published(folder.path / "model")
            if saved_weights(folder.path / "model") is None:
                raise ModelError("they are gone")
        except ModelError as error:
            raise StorageError(
                f"--resume {folder.path}: the weights of its best epoch ({best}) are not in model/ as they were written: {error}"
            ) from error
    return tensors, plain


def _check_processes(count: Any) -> None:
    if isinstance(count, int) and count != dist.world_size():
        raise UsageError(
            f"--resume: the run was made with {count} processes and this is {dist.world_size()}; "
            f"use --nproc-per-node {count}, or so many on several machines together"
        )


def _on_main(state: TrainState, work: Callable[[runs.RunFolder], Any]) -> Any:
    """What rank 0, which has the folder, makes of it, on every rank; its error is everybody's."""
    found: Any = None
    if state.folder:
        try:
            found = work(state.folder)
        except RiftError as error:  # the others wait for what we found
            found = error
    found = dist.broadcast_object(found)
    if isinstance(found, RiftError):
        raise found
    return found


def begin_again(state: TrainState) -> None:
    """A run that was interrupted before its first checkpoint begins anew in its folder, of what it began with."""

    def clear(folder: runs.RunFolder) -> None:
        _check_inputs(state)
        folder.restart()
        folder.update(status="running", resumed=provenance.now(), **provenance.process())

    _on_main(state, clear)
    state.console.line("the run was interrupted before its first checkpoint: it begins anew")


def restore(state: TrainState) -> None:
    """Put the newest whole checkpoint back, bit for bit; raise UsageError for another number of processes."""
    setup, step = state.setup, state.setup.step
    assert step.optimizer is not None
    tensors, plain = _on_main(state, lambda folder: _load(state, folder))
    setup.network.vit.load_state_dict(tensors["model"], strict=not is_sharded(setup.network.vit))
    if step.regularizer:
        step.regularizer.load_state_dict(tensors["penalty"])
    if setup.projection:
        setup.projection.load_state_dict(tensors["projection"])
    if setup.average:
        setup.average.load_state_dict(tensors["average"])
    checkpoint.unpack_optimizer(step.optimizer, tensors["optimizer"], plain["optimizer"])
    set_random_state({name: tensors["random"][f"{dist.rank()}/{name}"] for name in random_state(setup.device)}, setup.device)
    state.progress = Progress(**plain["progress"])
    expected = plain.get("expected")
    state.expected = None if expected is None else torch.tensor(expected)
    if state.steering:
        state.steering.resume(state.progress.step, state.progress.strength)
    setup.pretrained.trace_0 = plain.get("trace_0", setup.pretrained.trace_0)
    if state.folder:
        state.folder.truncate_metrics(state.progress.step)
        state.folder.update(status="running", resumed=provenance.now(), **provenance.process())
    state.console.line(f"resuming after step {state.progress.step} of {setup.total_steps}")
