"""A commented recipe for data that was found by looking: settings for the size of the data and of the machine."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from riftcli.errors import UsageError, did_you_mean
from riftcli.recipe import family
from riftcli.recipe.reader import flow, shipped_folder

STEPS = 2000  # of a run on little data; more images get at least FEWEST epochs
FEWEST, MOST = 5, 50  # epochs
ON_CPU = 10  # epochs at most where there is no GPU
IMBALANCE = 3  # times as many images in the largest class as in the smallest: balanced accuracy chooses the weights
PLAIN = {
    "full": {},
    "rift": {"regularizer": "{name: rift, strength: 1.0, compare: features, q: fixed}"},
    "rsc": {"regularizer": "{name: rsc, strength: 1.0}"},
    "linear": {"adapter": "{name: linear}"},
}  # method -> sections that it sets; the others are those of recipes/methods/


@dataclass(frozen=True)
class Size:
    """What a draft is made for. imbalance: images of the largest class over those of the smallest; gpu: there is one."""

    images: int
    classes: int
    imbalance: float
    multilabel: bool
    gpu: bool


def methods() -> list[str]:
    """Names that --method takes."""
    return [*PLAIN, *family.methods(shipped_folder())]


def draft(name: str, title: str, facts: list[str], data: dict[str, Any], size: Size, model: str, method: str) -> str:
    """The text of a recipe called `name`. data: its `data` section; raise UsageError for an unknown method."""
    if method not in methods():
        raise UsageError(f"--method {method}: unknown{did_you_mean(method, methods())}; one of: {', '.join(methods())}")
    batch = next(b for b in (128, 64, 32, 16, 8, 4, 2) if b <= 16 or size.images >= 30 * b) if size.images >= 60 else 8
    batch = min(batch, max(2, size.images // 2))
    per_epoch = max(1, size.images // batch)
    epochs = min(MOST, max(FEWEST, math.ceil(STEPS / per_epoch)))
    epochs = epochs if size.gpu else min(ON_CPU, epochs)
    lr = "1e-3" if method == "linear" else "4e-5"
    best = "map" if size.multilabel else "bacc" if size.imbalance >= IMBALANCE else "acc"
    metrics = ["map", "auroc"] if size.multilabel else ["acc", "bacc", "f1", "ece"]
    head = "\n".join(f"# {line}" for line in [title, *facts])
    unequal = f"classes differ {size.imbalance:.0f}-fold in size: balanced accuracy chooses"
    why = unequal if best == "bacc" else "chooses the weights"
    text = f"""{head}
#   rift data check --recipe {name}.yaml
#   rift finetune --recipe {name}.yaml
model: {{name: "{model}"{_image_size(model)}}}
{_data_block(data)}
objective: {{name: {"bce" if size.multilabel else "cross_entropy"}}}
adapter: {{name: full}}
augment: {{flip: 0.5, crop_min_area: 0.6}}   # flip: 0 where left and right mean something
optim: {{name: adamw, lr: {lr}, weight_decay: 0.05, clip_grad: 1.0}}
schedule: {{name: cosine, warmup: 0.1}}
train: {{epochs: {epochs}, batch_size: {batch}, head_init: linear_probe}}   # {epochs * per_epoch} steps
eval: {{metrics: [{", ".join(metrics)}, cka, cka_debiased], best: {best}}}   # {best}: {why}
"""
    if method in PLAIN:
        return family.with_sections(text, PLAIN[method])
    return family.with_method(shipped_folder(), text, method)


def _image_size(model: str) -> str:
    """224 px for backbones whose own size would be far more than a first run needs."""
    return ", image_size: 224" if "dinov2" in model or "dinov3" in model else ""


NOTES = {
    "fraction": "cut from the training split, the same for every seed",
    "group": "cut from the training split, whole {group}s, the same for every seed",
}


def _data_block(data: dict[str, Any]) -> str:
    """The `data` section, a line a key."""
    lines = ["data:"]
    for key, value in data.items():
        line = f"  {key}: {flow(value)}"
        if key in ("val", "test") and isinstance(value, dict):
            line += f"   # {NOTES['group' if 'group' in value else 'fraction'].format(**value)}"
        lines.append(line)
    return "\n".join(lines)
