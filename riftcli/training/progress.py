"""Where a run stands between two steps, in plain values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


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
    data_seconds: float = 0.0  # of these: in which images were waited for
    warned: bool = False
    unvalidated: bool = False  # stopped after the last step of an epoch, before it was evaluated
    collapsed: int = 0  # logged steps in a row without a representation
    variance_0: float | None = None  # of the pretrained features of a batch, when its spectrum was last looked at
    first_trace: float = 1.0  # variance of the features relative to the pretrained ones before anything moved
    strength: dict[str, Any] = field(default_factory=dict)  # where a strength rule stands
