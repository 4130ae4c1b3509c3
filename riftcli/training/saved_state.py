"""Is what lies in a checkpoint something that this run can have written? Checked before any of it is used."""

from __future__ import annotations

from typing import Any, get_type_hints

import torch

from riftcli.models.sharding import own_state
from riftcli.training.checkpoint import Tables, named_tensors
from riftcli.training.progress import Progress
from riftcli.training.setup import Setup

_KINDS: dict[Any, tuple[type, ...]] = {
    int: (int,),
    float: (int, float),
    bool: (bool,),
    dict[str, Any]: (dict,),
    int | None: (int, type(None)),
    float | None: (int, float, type(None)),
}


def check_saved_state(setup: Setup, tensors: Tables, plain: dict[str, Any]) -> None:
    """Raise ValueError for a checkpoint with other tensors, types or ranges than a run of this recipe writes, or with numbers
    that are not finite.
    """
    step = setup.step
    check_progress(plain.get("progress"), setup.total_steps)
    ranks = plain.get("world_size")
    if not isinstance(ranks, int) or not _is(ranks, (int,)) or ranks < 1:
        raise ValueError(f"world_size is {ranks!r}")
    trace = plain.get("trace_0")
    if trace is not None and not _is(trace, (int, float)):
        raise ValueError(f"trace_0 is {trace!r}")
    expected: dict[str, dict[str, torch.Tensor]] = {"model": own_state(setup.network.vit)}
    expected["penalty"] = step.regularizer.state_dict() if step.regularizer else {}
    if setup.projection:
        expected["projection"] = setup.projection.state_dict()
    if setup.average:
        expected["average"] = setup.average.state_dict()
    others = set(tensors) - set(expected) - {"optimizer", "random"}
    if others or set(expected) - set(tensors):
        raise ValueError(
            f"tensors of {', '.join(sorted(others or set(expected) - set(tensors)))} where none belong, or none at all"
        )
    for name, table in expected.items():
        found = tensors[name]
        if name == "penalty" and ("inverse" in found) != ("inverse" in table):  # of Q: another device may not carry it along
            found, table = ({key: value for key, value in own.items() if key != "inverse"} for own in (found, table))
        check_tensors(name, found, table)
    assert step.optimizer is not None
    check_optimizer(tensors.get("optimizer", {}), plain.get("optimizer"), step.optimizer, plain["progress"]["step"])
    names = {f"{rank}/{kind}" for rank in range(ranks) for kind in ("cpu", *["cuda"] * (setup.device.type == "cuda"))}
    random = tensors.get("random", {})
    if not names <= set(random) or any(value.dtype != torch.uint8 or value.dim() != 1 for value in random.values()):
        raise ValueError("the random states are not those of its processes")


def _is(value: Any, kinds: tuple[type, ...]) -> bool:
    return isinstance(value, kinds) and (bool in kinds or not isinstance(value, bool))


def check_progress(found: Any, total: int) -> None:
    """Raise ValueError unless it is a Progress of a run of `total` steps."""
    if not isinstance(found, dict):
        raise ValueError("progress is missing")
    hints = get_type_hints(Progress)
    if not set(found) <= set(hints):
        raise ValueError(f"progress.{sorted(set(found) - set(hints))[0]} is not known")
    if "step" not in found:  # what else is missing is of a version that had it not
        raise ValueError("progress.step is missing")
    for name, value in found.items():
        if not _is(value, _KINDS[hints[name]]):
            raise ValueError(f"progress.{name} is {value!r:.40}")
        if hints[name] is int and value < 0:
            raise ValueError(f"progress.{name} is {value}")
    if found["step"] > total:
        raise ValueError(f"progress.step is {found['step']}, and the run has {total}")


def check_tensors(name: str, found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """Raise ValueError unless both have the same tensors by name, shape and dtype, and those found are finite."""
    if set(found) != set(expected):
        raise ValueError(f"{name} has other tensors: {sorted(set(found) ^ set(expected))[0]}")
    for key, value in found.items():
        wanted = expected[key]
        if value.shape != wanted.shape or value.dtype != wanted.dtype:
            raise ValueError(f"{name}: {key} is {tuple(value.shape)} {value.dtype}, not {tuple(wanted.shape)} {wanted.dtype}")
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise ValueError(f"{name}: {key} is not finite")


def check_optimizer(tensors: dict[str, torch.Tensor], packed: Any, optimizer: torch.optim.Optimizer, step: int) -> None:
    """Raise ValueError unless this is a state of an optimizer with these groups after so many steps."""
    groups = packed.get("groups") if isinstance(packed, dict) else None
    if not isinstance(groups, list) or len(groups) != len(optimizer.param_groups):
        raise ValueError("the optimizer has other groups")
    own = optimizer.state_dict()["param_groups"]
    if any(
        not isinstance(got, dict) or got.get("params") != want["params"] or set(got) != set(want)
        for got, want in zip(groups, own, strict=True)
    ):
        raise ValueError("the optimizer has other groups")
    for key, value in tensors.items():
        if value.is_floating_point() and bool(value.isnan().any()):
            raise ValueError(f"optimizer: {key} is not a number")
    count = sum(len(group["params"]) for group in own)
    state = packed.get("state")
    if state is None:  # as checkpoints were written before
        numbers = {key.partition("/")[0] for key in (*tensors, *packed.get("scalars", {}))}
    else:
        numbers = set(state)
        if named_tensors(state) | named_tensors(groups) != set(tensors):
            raise ValueError("the optimizer's tensors are not those that its state names")
    if any(not number.isdecimal() or int(number) >= count for number in numbers):
        raise ValueError("the optimizer has a state of parameters that there are none of")
    without = all(not group.get("momentum", 1) for group in own)  # plain SGD remembers nothing
    if step and not numbers and not without:
        raise ValueError("the optimizer's state is empty")
