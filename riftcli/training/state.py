"""The state of a run: where the loop stands, and how that is saved and put back bit for bit."""

from __future__ import annotations

import signal
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from riftcli import dist
from riftcli.console import Console
from riftcli.data.splits import fingerprint
from riftcli.errors import DataError, RiftError, UsageError
from riftcli.runs import folder as runs
from riftcli.runs import provenance
from riftcli.training import checkpoint
from riftcli.training.setup import Parts


@dataclass
class Progress:
    """Where the loop stands: with the tensors of the network, penalty, optimizer and random state, all that resume needs."""

    step: int = 0
    best_value: float | None = None
    best_epoch: int | None = None
    best_metrics: dict[str, Any] = field(default_factory=dict)
    last_cka: float | None = None  # on the validation split, for the progress bar
    worse_evals: int = 0  # evaluations since the best one
    train_seconds: float = 0.0
    warned: bool = False


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
class Session:
    """What every part of the loop needs at hand. `folder` is None on all ranks but the one that writes."""

    parts: Parts
    progress: Progress
    folder: runs.RunFolder | None
    console: Console
    stop: StopSignal

    @property
    def place(self) -> str:
        """The run folder, for messages."""
        return str(self.folder.path) if self.folder else "the run folder"


def save(session: Session) -> None:
    """Save the whole state of the loop; collective, because every rank has its own random state."""
    parts = session.parts
    own = {"cpu": torch.get_rng_state()}
    if parts.device.type == "cuda":
        own["cuda"] = torch.cuda.get_rng_state(parts.device)
    states = dist.gather_objects(own)
    if session.folder is None:
        return
    optimizer, packed = checkpoint.pack_optimizer(parts.optimizer)
    tensors = {
        "model": parts.vit.state_dict(),
        "optimizer": optimizer,
        "penalty": parts.penalty.state_dict() if parts.penalty else {},
        "random": {f"{rank}/{name}": state for rank, table in enumerate(states) for name, state in table.items()},
    }
    state = {"progress": asdict(session.progress), "optimizer": packed, "world_size": dist.world_size(), "trace_0": parts.trace_0}
    checkpoint.save(session.folder.path / "last", session.progress.step, tensors, state)


def _check_samples(session: Session) -> None:
    """Raise DataError when the splits are not what the run started with: it could not go on bitwise."""
    assert session.folder is not None
    started = runs.read_run(session.folder.path).get("samples", {})
    for name, split in session.parts.splits.named().items():
        if name in started and started[name] != fingerprint(split):
            raise DataError(
                f"--resume {session.folder.path}: split '{name}' has other samples or labels than when the run started "
                f"({len(split)} now); put the data back as it was, or start a new run"
            )


def restore(session: Session) -> None:
    """Put the newest whole checkpoint back, bit for bit; raise UsageError for another number of processes."""
    parts: Parts = session.parts
    loaded: Any = None
    if session.folder:
        try:
            _check_samples(session)
            loaded = checkpoint.load_newest(session.folder.path / "last", session.console.warn)
        except RiftError as error:  # the others wait for what we found
            loaded = error
    loaded = dist.broadcast_object(loaded)
    if isinstance(loaded, RiftError):
        raise loaded
    tensors, state = loaded
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
    session.progress = Progress(**state["progress"])
    parts.trace_0 = state.get("trace_0", parts.trace_0)
    if session.folder:
        session.folder.truncate_metrics(session.progress.step)
        session.folder.update(status="running", resumed=provenance.now())
    session.console.line(f"resuming after step {session.progress.step} of {parts.total_steps}")
