"""The lines of metrics.jsonl, handed on to whoever the recipe says may watch (`train.track`)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from riftcli import catalog
from riftcli.console import Console
from riftcli.runs.folder import RunFolder

PREFIX = {"step": "train", "eval": "validation", "strength": "strength"}  # kind of a line -> what its curves are below


class Tracker(Protocol):
    """A service that draws curves, open for one run."""

    def log(self, step: int, values: dict[str, float]) -> None:
        """Numbers of a step."""

    def close(self) -> None:
        """End of the run."""


def require_trackers(names: Sequence[str]) -> None:
    """Raise EnvironmentError where the extra of one of them is not installed: before anything is read or written."""
    components: list[Any] = [catalog.component("tracker", name) for name in names]
    for component in components:
        component().require()


@contextmanager
def watched(
    names: Sequence[str], folder: RunFolder | None, settings: dict[str, Any], step: int, console: Console
) -> Iterator[None]:
    """Inside, every line goes to the trackers too. One that fails is told once and dropped: it takes nothing from the run."""
    alive: dict[str, Tracker] = {}

    def failed(name: str, error: Exception) -> None:
        alive.pop(name, None)
        console.warn(f"train.track {name}: {type(error).__name__}: {error}; the run goes on without it")

    for name in names:
        if folder is None:
            break  # rank 0 writes
        component: Any = catalog.component("tracker", name)
        try:
            alive[name] = component().open(folder.path, settings, step)
        except Exception as error:  # no network, no login
            failed(name, error)

    def hand_on(row: dict[str, Any]) -> None:
        for name, tracker in list(alive.items()):
            try:
                tracker.log(row["step"], values_of(row))
            except Exception as error:
                failed(name, error)

    if folder is not None and alive:
        folder.watchers.append(hand_on)
    try:
        yield
    finally:
        for name, tracker in list(alive.items()):
            try:
                tracker.close()
            except Exception as error:
                failed(name, error)


def values_of(row: dict[str, Any]) -> dict[str, float]:
    """The numbers of a line as `train/loss`, `validation/acc`, ...; what is not a finite number is left out."""
    prefix = PREFIX.get(row["kind"], row["kind"])
    kept = {key: value for key, value in row.items() if key not in ("kind", "step") and isinstance(value, int | float)}
    return {f"{prefix}/{key}": float(value) for key, value in kept.items() if math.isfinite(value)}
