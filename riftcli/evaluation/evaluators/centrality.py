"""How far finetuned models lie from their common centre: what `rift centrality` does (RIFT paper Table A4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from riftcli.errors import UsageError
from riftcli.evaluation.candidates import Candidate
from riftcli.evaluation.data_sets import EvalData
from riftcli.evaluation.encoder import Encoder
from riftcli.models.backbone import Backbone
from riftcli.models.loading import check_values
from riftcli.models.weights import folder_name, read_config, saved_state
from riftcli.recipe.naming import method_names
from riftcli.runs.provenance import environment
from riftcli.runs.result_table import ResultTable, Row
from riftcli.runs.series import spread

State = dict[str, torch.Tensor]


def backbone_state(candidate: Candidate) -> State:
    """The saved floating-point weights of the backbone, without head and inserted layers, on the CPU in fp64."""
    assert candidate.weights is not None
    config = read_config(candidate.weights.parent)
    head = config.get("pretrained_cfg", {}).get("classifier") or "head"
    heads = (head,) if isinstance(head, str) else tuple(head)
    tensors = saved_state(candidate.weights.parent)
    check_values(tensors, tensors, str(candidate.weights.parent))
    if config.get("rift", {}).get("adapter"):  # prompts and bottlenecks start at random: no two runs share them
        plain = Backbone(folder_name(candidate.weights.parent), pretrained=False).build().state_dict()
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


@dataclass(frozen=True)
class Centrality:
    """Distance of each run's backbone to the mean of all runs of its method. pretrained: also to the pretrained weights."""

    pretrained: bool = False

    def measure(self, candidates: Sequence[Candidate], data: Sequence[EvalData], encoder: Encoder | None) -> ResultTable:
        """One row per run; runs of the same method share a centre. Looks at weights, so at neither data nor encoder.

        Raises UsageError for a method with a single run: it is its own centre.
        """
        groups: dict[str, list[Candidate]] = {}
        for candidate in candidates:
            if not candidate.is_run:
                raise UsageError(f"{candidate.label}: not a run; centres are of runs of the same method")
        for name, candidate in zip(method_names([candidate.recipe for candidate in candidates]), candidates, strict=True):
            groups.setdefault(name, []).append(candidate)
        rows: list[Row] = []
        averages: list[Row] = []
        for method, members in groups.items():
            if len(members) < 2:
                raise UsageError(f"{members[0].label}: the only run of method '{method}'; a centre needs at least two")
            states = [backbone_state(candidate) for candidate in members]
            if not shared(states):
                raise UsageError(f"method '{method}': its runs have no weights in common")
            start = _start(members[0]) if self.pretrained else None
            own = []
            for candidate, state, found in zip(members, states, distances(states), strict=True):
                row = {"model": candidate.label, "method": method, "data": candidate.recipe.data.name, **found}
                row["from_pretrained"] = None if start is None else _from_start(state, start)
                own.append(row)
            rows += own
            averages.append({"method": method, "runs": len(own), **_average(own)})
        env = environment(torch.device("cpu"), "fp64", 1, 0)
        return ResultTable("centrality", {"norm": "L2 over the backbone"}, [], rows, env, {"averages": averages})


def _average(rows: Sequence[Row]) -> Row:
    found = {}
    for key in ("distance", "relative", "rms", "from_pretrained"):
        values = [row[key] for row in rows]
        if None not in values:
            found[key], found[f"{key}_std"] = spread(values)["mean"], spread(values)["std"]
    return found


def _start(candidate: Candidate) -> State:
    vit = Backbone(**{**candidate.recipe.model.model_dump(), "pretrained": True}).build()
    return {name: tensor.double() for name, tensor in vit.state_dict().items() if tensor.is_floating_point()}


def _from_start(state: State, start: State) -> float:
    names = shared([state, start])
    return _norm({name: state[name] - start[name] for name in names})
