"""Fit maps between the features of two frozen models: closed forms, or both ways together by gradient descent."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import nn

from riftcli.errors import UsageError
from riftcli.functional.alignment import procrustes_rotation
from riftcli.functional.feature_maps import class_contrast, padded, truncated
from riftcli.functional.ranking import ranked
from riftcli.functional.rotations import orthogonality_distance, soft_orthogonality, usual_threshold
from riftcli.models.feature_map import FeatureMap, linear_layers

MapKind = Literal["orthogonal", "lambda", "affine", "soft", "procrustes", "slerp", "rift"]
KINDS = get_args(MapKind)
SHARES = tuple(i / 10 for i in range(11))  # of the interpolation that slerp chooses among


@dataclass(frozen=True)
class MapOptions:
    """How a map is fitted (lambda-orthogonality, arXiv 2509.16664).

    kind: orthogonal (exp of a skew matrix) | lambda (orthogonal up to a threshold) | soft (||W W^T - I||_F is added) | affine
    (free) | procrustes (the best rotation, in closed form) | slerp (that, mixed with the old model's features of the query) |
    rift (Q^T as a RIFT run has learned it: nothing is fitted).
    threshold: lambda, on ||W W^T - I||_F; null grows with the root of the width as the paper's 12 at 512. sharpness: of its
    sigmoid. weights: of L_F, L_B and L_C. temperature: of the contrastive terms. layers: of the forward map, ReLU between them.
    epochs, batch_size, lr: of Adam. The paper states the loss, Adam, 1e-3 and 12; the other values are ours.
    """

    kind: MapKind = "lambda"
    threshold: float | None = None
    sharpness: float = 10.0
    weights: tuple[float, float, float] = (1.0, 1.0, 1.0)
    temperature: float = 0.07
    layers: int = 1
    epochs: int = 50
    batch_size: int = 256
    lr: float = 1e-3
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UsageError(f"--map {self.kind}: one of {', '.join(KINDS)}")
        if self.threshold is not None and not 0 <= self.threshold < math.inf:
            raise UsageError(f"--lambda {self.threshold:g}: a threshold is 0 or more, or auto")
        for name, number in (("--temperature", self.temperature), ("--lr", self.lr)):
            if not 0 < number < math.inf:
                raise UsageError(f"{name} {number:g}: must be above 0")
        for name, value in (("--epochs", self.epochs), ("--batch-size", self.batch_size), ("--layers", self.layers)):
            if value < 1:
                raise UsageError(f"{name} {value}: must be 1 or more")
        if len(self.weights) != 3 or not all(0 <= weight < math.inf for weight in self.weights) or not sum(self.weights):
            raise UsageError("--weights: three numbers, of L_F, L_B and L_C, 0 or more and not all 0")


@dataclass(frozen=True)
class Fitted:
    """A map, and its losses epoch by epoch where it was learned."""

    map: FeatureMap
    history: list[dict[str, float]] = field(default_factory=list)


def fit_map(
    old: torch.Tensor,
    new: torch.Tensor,
    labels: torch.Tensor | None,
    options: MapOptions,
    advance: Callable[[int], None] = lambda count: None,
) -> Fitted:
    """Features of the same images by the old and the new model, (N, d) and (N, n), of unit length or not (they are brought to
    it: retrieval is by cosine); labels (N,) or None. Deterministic in `options.seed`.
    """
    old, new = F.normalize(old.float(), dim=1), F.normalize(new.float(), dim=1)
    if options.kind in ("procrustes", "slerp"):
        return _closed(old, new, labels, options)
    return _learned(old, new, labels, options, advance)


def _closed(old: torch.Tensor, new: torch.Tensor, labels: torch.Tensor | None, options: MapOptions) -> Fitted:
    """The narrower space is filled up with zeros."""
    width = max(old.shape[1], new.shape[1])
    rotation = procrustes_rotation(padded(new, width), padded(old, width)).float()
    found = FeatureMap(options.kind, old.shape[1], new.shape[1], linear(rotation.T))
    if options.kind == "slerp":
        found.share = _best_share(found, old, new, labels)
    return Fitted(found)


def _best_share(found: FeatureMap, old: torch.Tensor, new: torch.Tensor, labels: torch.Tensor | None) -> float:
    """The interpolation whose queries find most of their class first in the old gallery, themselves left out."""
    if labels is None:
        raise UsageError("--map slerp: chooses its share by classes, and the data has none")
    gallery, own = found.old(old), torch.arange(len(old))
    scores = []
    for share in SHARES:
        found.share = share
        scores.append(ranked(found.to_old(new, old), gallery, labels, labels, own).means((1,))["cmc_1"] or 0.0)
    return SHARES[max(range(len(SHARES)), key=lambda i: scores[i])]


def _learned(
    old: torch.Tensor, new: torch.Tensor, labels: torch.Tensor | None, options: MapOptions, advance: Callable[[int], None]
) -> Fitted:
    generator = torch.Generator().manual_seed(options.seed)
    width = min(old.shape[1], new.shape[1])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        backward = _backward(new.shape[1], options.kind)
        forward = linear_layers([old.shape[1], *[new.shape[1]] * options.layers], bias=True)
    trained = [*backward.parameters(), *forward.parameters()]
    optimizer = torch.optim.Adam(trained, lr=options.lr)
    history = []
    for epoch in range(options.epochs):
        sums: dict[str, float] = {}
        for rows in _batches(len(old), options.batch_size, generator):
            there, here = backward(new[rows]), forward(old[rows])
            terms = _terms(there, here, old[rows], None if labels is None else labels[rows], width, options)
            constraint = _constraint(backward, options)
            loss = torch.stack([*terms.values(), constraint]).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if not bool(loss.isfinite()):
                raise UsageError(f"the loss of the map is not finite in epoch {epoch + 1}: lower --lr (it is {options.lr:g})")
            for name, value in {**terms, "constraint": constraint}.items():
                sums[name] = sums.get(name, 0.0) + float(value.detach()) * len(rows) / len(old)
        with torch.no_grad():
            distance = float(orthogonality_distance(_weight(backward)))
        history.append({"epoch": epoch + 1, **sums, "orthogonality": distance})
        advance(1)
    found = linear(_weight(backward).detach(), None if backward.bias is None else backward.bias.detach())
    return Fitted(FeatureMap(options.kind, old.shape[1], new.shape[1], found, forward.eval()), history)


def _backward(width: int, kind: str) -> Any:
    """A linear layer that starts at the identity; `affine` has an offset too."""
    layer = nn.Linear(width, width, bias=kind == "affine")
    with torch.no_grad():
        layer.weight.copy_(torch.eye(width))
        if layer.bias is not None:
            layer.bias.zero_()
    if kind == "orthogonal":
        return nn.utils.parametrizations.orthogonal(layer, orthogonal_map="matrix_exp")
    return layer


def _terms(
    there: torch.Tensor,
    here: torch.Tensor,
    old: torch.Tensor,
    labels: torch.Tensor | None,
    width: int,
    options: MapOptions,
) -> dict[str, torch.Tensor]:
    """L_F, L_B and L_C with their weights. there: B(new), here: F(old), (n, D) each."""
    forward, backward, contrast = options.weights
    cut, target, own = truncated(there, width), truncated(old, width), truncated(here, width)
    terms = {
        "forward": forward * (here - there).square().sum(1).mean(),
        "backward": backward * (cut - target).square().sum(1).mean(),
    }
    if contrast:
        pairs = class_contrast(own, cut, labels, options.temperature) + class_contrast(own, target, labels, options.temperature)
        terms["contrast"] = contrast * pairs
    return terms


def _constraint(layer: nn.Module, options: MapOptions) -> torch.Tensor:
    """What holds the map near the orthogonal ones (lambda-orthogonality Eq. 6)."""
    weight = _weight(layer)
    if options.kind in ("orthogonal", "affine"):
        return weight.new_zeros(())
    if options.kind == "soft":
        return orthogonality_distance(weight)
    threshold = usual_threshold(len(weight)) if options.threshold is None else options.threshold
    return soft_orthogonality(weight, threshold, options.sharpness)


def _weight(layer: nn.Module) -> torch.Tensor:
    return layer.weight  # type: ignore[return-value]


def linear(weight: torch.Tensor, bias: torch.Tensor | None = None) -> nn.Sequential:
    """rows @ weight.T + bias, as a module."""
    module = linear_layers([weight.shape[1], weight.shape[0]], bias=bias is not None)
    module.load_state_dict({"0.weight": weight, **({} if bias is None else {"0.bias": bias})})
    return module.eval()


def _batches(count: int, size: int, generator: torch.Generator) -> Iterator[torch.Tensor]:
    """All rows once, in a new order."""
    yield from torch.randperm(count, generator=generator).split(size)
