"""How far finetuned models lie from their common centre: what `rift centrality` does (RIFT paper Table A4)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from riftcli.errors import UsageError
from riftcli.evaluation.candidates import Subject
from riftcli.models.backbone import Backbone
from riftcli.models.weights import read_config
from riftcli.recipe.naming import method_names
from riftcli.runs import provenance
from riftcli.runs.result_table import Findings, Row
from riftcli.runs.series import spread

State = dict[str, torch.Tensor]


def backbone_state(subject: Subject) -> State:
    """The saved floating-point weights of the backbone, without head and inserted layers, on the CPU in fp64."""
    from safetensors.torch import load_file

    assert subject.weights is not None
    config = read_config(subject.weights.parent)
    head = config.get("pretrained_cfg", {}).get("classifier") or "head"
    heads = (head,) if isinstance(head, str) else tuple(head)
    tensors = load_file(subject.weights)
    if config.get("rift", {}).get("adapter"):  # prompts and bottlenecks start at random: no two runs share them
        plain = Backbone(f"local-dir:{subject.weights.parent}", pretrained=False).build().state_dict()
        tensors = {name: tensor for name, tensor in tensors.items() if name in plain}
    return {
        name: tensor.double()
        for name, tensor in tensors.items()
        if tensor.is_floating_point() and not name.startswith(tuple(f"{h}." for h in heads))
    }


def distances(states: Sequence[State]) -> list[dict[str, float]]:
    """Of every state to the mean of all: L2 (`distance`), relative to the norm of the mean, and per weight (`rms`).

    Only weights that all have are compared.
    """
    names = shared(states)
    count = sum(states[0][name].numel() for name in names)
    centre = {name: torch.stack([state[name] for state in states]).mean(0) for name in names}
    length = _norm(centre)
    rows = []
    for state in states:
        away = _norm({name: state[name] - centre[name] for name in names})
        rows.append({"distance": away, "relative": away / length, "rms": away / count**0.5})
    return rows


def shared(states: Sequence[State]) -> list[str]:
    """Names that every state has, in the same shape."""
    first = states[0]
    return [name for name in first if all(name in s and s[name].shape == first[name].shape for s in states)]


def _norm(state: State) -> float:
    return float(torch.stack([tensor.square().sum() for tensor in state.values()]).sum().sqrt())


def centrality_run(subjects: Sequence[Subject], from_start: bool) -> Findings:
    """One row per run; runs of the same method share a centre. from_start: also the distance to the pretrained weights.

    Raises UsageError for a method with a single run: it is its own centre.
    """
    groups: dict[str, list[Subject]] = {}
    for subject in subjects:
        if not subject.is_run:
            raise UsageError(f"{subject.label}: not a run; centres are of runs of the same method")
    for name, subject in zip(method_names([subject.recipe for subject in subjects]), subjects, strict=True):
        groups.setdefault(name, []).append(subject)
    rows: list[Row] = []
    averages: list[Row] = []
    for method, members in groups.items():
        if len(members) < 2:
            raise UsageError(f"{members[0].label}: the only run of method '{method}'; a centre needs at least two")
        states = [backbone_state(subject) for subject in members]
        if not shared(states):
            raise UsageError(f"method '{method}': its runs have no weights in common")
        start = _start(members[0]) if from_start else None
        own = []
        for subject, state, found in zip(members, states, distances(states), strict=True):
            row = {"model": subject.label, "method": method, "data": subject.recipe.data.name, **found}
            row["from_pretrained"] = None if start is None else _from_start(state, start)
            own.append(row)
        rows += own
        averages.append({"method": method, "runs": len(own), **_average(own)})
    env = provenance.environment(torch.device("cpu"), "fp64", 1, 0)
    return Findings("centrality", {"norm": "L2 over the backbone"}, [], rows, env, {"averages": averages})


def _average(rows: Sequence[Row]) -> Row:
    found = {}
    for key in ("distance", "relative", "rms", "from_pretrained"):
        values = [row[key] for row in rows]
        if None not in values:
            found[key], found[f"{key}_std"] = spread(values)["mean"], spread(values)["std"]
    return found


def _start(subject: Subject) -> State:
    vit = Backbone(**{**subject.recipe.model.model_dump(), "pretrained": True}).build()
    return {name: tensor.double() for name, tensor in vit.state_dict().items() if tensor.is_floating_point()}


def _from_start(state: State, start: State) -> float:
    names = shared([state, start])
    return _norm({name: state[name] - start[name] for name in names})
