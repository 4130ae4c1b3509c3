"""Maps between two models' features as one file: weights, and where they come from."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from riftcli.errors import ModelError
from riftcli.functional.feature_maps import padded, slerp, truncated
from riftcli.models.weights import write_tensors

FORMAT = "rift.map/1"
FILE = "map.safetensors"


@dataclass
class FeatureMap:
    """B: new -> old features, and F: old -> what B makes of new ones, where one was learned.

    widths: of the old and the new model. backward and forward act on rows (n, D) at fp32; share: of a spherical interpolation
    between an old query and its mapped new one. about: models, data, settings.
    """

    kind: str
    old_width: int
    new_width: int
    backward: nn.Module
    forward: nn.Module | None = None
    share: float | None = None
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def width(self) -> int:
        """What mapped features are compared in: closed forms fill up the narrower space, learned maps cut the wider one."""
        return (max if self.kind in ("procrustes", "slerp") else min)(self.old_width, self.new_width)

    def old(self, rows: torch.Tensor) -> torch.Tensor:
        """Old features (n, d) as they are compared with mapped ones; (n, width)."""
        return self._fitted(rows)

    @torch.no_grad()
    def to_old(self, rows: torch.Tensor, old: torch.Tensor | None = None) -> torch.Tensor:
        """B: new features (n, D) -> (n, width). old: the old model's of the same images, which `slerp` mixes in."""
        unit = F.normalize(rows.float(), dim=1)  # as it was fitted
        mapped = self._fitted(self.backward(padded(unit, self.width) if unit.shape[1] < self.width else unit))
        if self.share is None:
            return mapped
        if old is None:
            raise ModelError("a slerp map needs the old model's features of the queries too")
        return slerp(self.old(old).float(), mapped, self.share)

    @torch.no_grad()
    def to_new(self, rows: torch.Tensor) -> torch.Tensor:
        """F: old features (n, d) -> those that B makes of new ones; (n, width). Raises ModelError where none was learned."""
        if self.forward is None:
            raise ModelError(f"a {self.kind} map has no way from old to new features")
        return self._fitted(self.forward(F.normalize(rows.float(), dim=1)))

    def _fitted(self, rows: torch.Tensor) -> torch.Tensor:
        return padded(rows, self.width) if rows.shape[1] < self.width else truncated(rows, self.width)

    def save(self, path: Path) -> Path:
        """One safetensors file with the provenance as metadata."""
        tensors = {f"backward.{k}": v for k, v in self.backward.state_dict().items()}
        if self.forward is not None:
            tensors |= {f"forward.{k}": v for k, v in self.forward.state_dict().items()}
        facts = {"format": FORMAT, "kind": self.kind, "old_width": self.old_width, "new_width": self.new_width}
        about = {**facts, "share": self.share, **self.about}
        path.parent.mkdir(parents=True, exist_ok=True)
        write_tensors(path, tensors, {"rift": json.dumps(about)})
        return path


def load_map(path: Path) -> FeatureMap:
    """A map that `rift align` wrote: its file, or the folder it lies in; raise ModelError."""
    from safetensors import SafetensorError, safe_open

    path = path / FILE if path.is_dir() else path
    if not path.is_file():
        raise ModelError(f"{path}: no such map; rift align writes one")
    try:
        with safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {}).get("rift", "{}"))
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, ValueError) as error:
        raise ModelError(f"{path}: not a map ({error})") from error
    if about.get("format") != FORMAT:
        raise ModelError(f"{path}: not a map of riftcli (format {about.get('format')}, expected {FORMAT})")
    facts = [about.pop(key) for key in ("format", "kind", "old_width", "new_width", "share")]
    parts = {way: _rebuilt(tensors, f"{way}.") for way in ("backward", "forward")}
    backward = parts["backward"]
    if backward is None:
        raise ModelError(f"{path}: has no backward map")
    return FeatureMap(facts[1], facts[2], facts[3], backward, parts["forward"], facts[4], about)


def _rebuilt(tensors: dict[str, torch.Tensor], prefix: str) -> nn.Module | None:
    """Linear layers with a ReLU between them, as the names of their weights say."""
    own = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
    if not own:
        return None
    places = sorted({int(key.split(".")[0]) for key in own})
    shapes = [own[f"{place}.weight"].shape for place in places]
    module = linear_layers([shapes[0][1], *(shape[0] for shape in shapes)], bias=f"{places[0]}.bias" in own)
    module.load_state_dict(own)
    return module.eval()


def linear_layers(widths: list[int], bias: bool) -> nn.Sequential:
    """Linear layers of these widths, ReLU between them."""
    layers: list[nn.Module] = []
    for one, other in zip(widths[:-1], widths[1:], strict=True):
        layers += [nn.Linear(one, other, bias=bias), nn.ReLU()]
    return nn.Sequential(*layers[:-1])
