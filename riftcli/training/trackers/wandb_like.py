"""Weights & Biases (extra `wandb`), and trackio, which has its interface."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from riftcli.errors import EnvironmentError
from riftcli.runs.folder import read_run

PROJECT = "riftcli"


@dataclass(frozen=True)
class Wandb:
    """A run of project `riftcli`, called as its folder is. Its id is made of where and when it began, so that a resumed run
    continues its curves. Where it goes (server, offline) is said by wandb's own environment variables, e.g. WANDB_MODE=offline.
    """

    def require(self) -> None:
        """Raise EnvironmentError where wandb is not installed."""
        _module("wandb")

    def open(self, run: Path, settings: dict[str, Any], step: int) -> Session:
        """step: that the run goes on after."""
        return Session(_module("wandb"), run, settings, step)


@dataclass(frozen=True)
class Trackio:
    """The same, kept on this machine by trackio."""

    def require(self) -> None:
        """Raise EnvironmentError where trackio is not installed."""
        _module("trackio")

    def open(self, run: Path, settings: dict[str, Any], step: int) -> Session:
        """step: that the run goes on after."""
        return Session(_module("trackio"), run, settings, step)


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise EnvironmentError(f"train.track {name} needs it installed: pip install {name}") from None


class Session:
    """A run that a module with wandb's interface has begun."""

    def __init__(self, library: Any, run: Path, settings: dict[str, Any], step: int) -> None:
        place, begun = run.resolve(), read_run(run)
        # the same when the run is resumed; another for what stands in its place later, or at the same place of another machine
        identity = repr([str(place), platform.node(), begun.get("created"), begun.get("pid")])
        wanted = {
            "project": PROJECT,
            "name": place.name,
            "config": settings,
            "id": hashlib.sha256(identity.encode()).hexdigest()[:16],
            "resume": "allow" if step else None,
            "dir": str(run),
        }
        taken = inspect.signature(library.init).parameters
        library.init(**{key: value for key, value in wanted.items() if key in taken and value is not None})
        self._library = library

    def log(self, step: int, values: dict[str, float]) -> None:
        """Numbers of a step."""
        self._library.log(values, step=step)

    def close(self) -> None:
        """End of the run."""
        self._library.finish()
