"""The state of a run: where the loop stands, and how that is saved and put back bit for bit."""

from __future__ import annotations

import signal
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from riftcli import dist
from riftcli.console import Console
from riftcli.errors import DataError, RiftError, UsageError
from riftcli.runs import folder as runs
from riftcli.runs import provenance
from riftcli.training import checkpoint
from riftcli.training.setup import Setup
from riftcli.training.strength import Steering


@dataclass
class Progress:
    """Where the loop stands: with the tensors of the network, penalty, optimizer and random state, all that resume needs."""

    step: int = 0
    best_value: float | None = None
    best_epoch: int | None = None
    best_metrics: dict[str, Any] = field(default_factory=dict)
    start_metrics: dict[str, Any] = field(default_factory=dict)  # of validation, before the first step
    last_cka: float | None = None  # on the validation split, for the progress bar
    worse_evals: int = 0  # evaluations since the best one
    train_seconds: float = 0.0
    warned: bool = False
    collapsed: int = 0  # logged steps in a row without a representation
    first_trace: float = 1.0  # variance of the features relative to the pretrained ones before anything moved
    strength: dict[str, Any] = field(default_factory=dict)  # where a strength rule stands


class StopSignal:
    """SIGTERM or SIGUSR1: finish the step, save once, exit 143. The same one again kills at once."""

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
        """Put the old handlers back."""
        for number, handler in self._old.items():
            signal.signal(number, handler)


@dataclass
class TrainState:
    """What every part of the loop needs at hand. `folder` is None on all ranks but the one that writes."""

    setup: Setup
    progress: Progress
    folder: runs.RunFolder | None
    console: Console
    stop: StopSignal
    steering: Steering | None = None

    @property
    def place(self) -> str:
        """The run folder, for messages."""
        return str(self.folder.path) if self.folder else "the run folder"


def save(state: TrainState) -> None:
    """Save the whole state of the loop; collective, because every rank has its own random state."""
    setup, step = state.setup, state.setup.step
    assert step.optimizer is not None
    own = {"cpu": torch.get_rng_state()}
    if setup.device.type == "cuda":
        own["cuda"] = torch.cuda.get_rng_state(setup.device)
    states = dist.gather_objects(own)
    if state.folder is None:
        return
    optimizer, packed = checkpoint.pack_optimizer(step.optimizer)
    tensors = {
        "model": setup.network.vit.state_dict(),
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
    checkpoint.save(state.folder.path / "last", state.progress.step, tensors, plain)


def _check_samples(state: TrainState) -> None:
    """Raise DataError when the splits are not what the run started with: it could not go on bitwise."""
    assert state.folder is not None
    started = runs.read_run(state.folder.path).get("samples", {})
    for name, now in state.setup.data.fingerprints().items():
        if name in started and started[name] != now:
            count = len(state.setup.data.looked_at("reference") if name == "reference" else state.setup.data.splits.named()[name])
            raise DataError(
                f"--resume {state.folder.path}: split '{name}' has other samples or labels than when the run started "
                f"({count} now); put the data back as it was, or start a new run"
            )


def restore(state: TrainState) -> None:
    """Put the newest whole checkpoint back, bit for bit; raise UsageError for another number of processes."""
    setup, step = state.setup, state.setup.step
    assert step.optimizer is not None
    loaded: Any = None
    if state.folder:
        try:
            _check_samples(state)
            loaded = checkpoint.load_newest(state.folder.path / "last", state.console.warn)
        except RiftError as error:  # the others wait for what we found
            loaded = error
    loaded = dist.broadcast_object(loaded)
    if isinstance(loaded, RiftError):
        raise loaded
    tensors, plain = loaded
    if plain["world_size"] != dist.world_size():
        raise UsageError(
            f"--resume: the run was made with {plain['world_size']} processes and this is {dist.world_size()}; "
            f"use --nproc-per-node {plain['world_size']}"
        )
    setup.network.vit.load_state_dict(tensors["model"])
    if step.regularizer:
        step.regularizer.load_state_dict(tensors["penalty"])
    if setup.projection:
        setup.projection.load_state_dict(tensors["projection"])
    if setup.average:
        setup.average.load_state_dict(tensors["average"])
    checkpoint.unpack_optimizer(step.optimizer, tensors["optimizer"], plain["optimizer"])
    torch.set_rng_state(tensors["random"][f"{dist.rank()}/cpu"])
    if setup.device.type == "cuda":
        torch.cuda.set_rng_state(tensors["random"][f"{dist.rank()}/cuda"], setup.device)
    state.progress = Progress(**plain["progress"])
    if state.steering:
        state.steering.resume(state.progress.step, state.progress.strength)
    setup.pretrained.trace_0 = plain.get("trace_0", setup.pretrained.trace_0)
    if state.folder:
        state.folder.truncate_metrics(state.progress.step)
        state.folder.update(status="running", resumed=provenance.now())
    state.console.line(f"resuming after step {state.progress.step} of {setup.total_steps}")
