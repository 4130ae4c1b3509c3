"""Features after every block, and how alike they are between two models."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from riftcli import dist
from riftcli.data.loader import Batch
from riftcli.data.transforms import Preprocessing
from riftcli.errors import UsageError
from riftcli.models.classifier import Classifier, intermediates_form, pooled


def encode_layers(
    model: Classifier,
    batches: Iterator[Batch],
    preprocessing: Preprocessing,
    device: torch.device,
    tick: Callable[[int], None] = lambda n: None,
) -> list[torch.Tensor]:
    """Features after each block and, last, before the head; L + 1 tables (N, D), rows in split order, on every rank.

    A block's feature is what the head would read: the class token, or the mean over the image where the model pools it. Where
    timm hands out no class token (convolutional networks, whose blocks are stem and stages; some transformers) it is the mean
    over the image. Raises UsageError for a model without forward_intermediates.
    """
    vit: Any = model.vit
    if not hasattr(vit, "forward_intermediates"):
        raise UsageError("--layers all: this network does not hand out its layers (timm: forward_intermediates)")
    form = intermediates_form(vit)
    model.eval()
    positions, layers = [], []
    with torch.inference_mode(), torch.autocast(device.type, enabled=False):
        for images, _, index in batches:
            final, blocks = vit.forward_intermediates(preprocessing.normalise(images.to(device, non_blocking=True)), **form)
            features = [*(pooled(vit, block) for block in blocks), vit.forward_head(final, pre_logits=True)]
            layers.append([row.float().cpu() for row in features])
            positions.append(index)
            tick(len(index))
    widths = next(own for own in dist.gather_objects([rows.shape[1] for rows in layers[0]] if layers else None) if own)
    own = [torch.cat([torch.empty(0, width), *(rows[i] for rows in layers)]) for i, width in enumerate(widths)]
    back = dist.concatenated(torch.cat([torch.empty(0, dtype=torch.long), *positions])).argsort()
    return [dist.concatenated(rows)[back].clone() for rows in own]  # copied: made under inference_mode


def layer_names(count: int) -> list[str]:
    """block1 ... blockL, head: the last one is the feature before the head."""
    return [*(f"block{i}" for i in range(1, count)), "head"]
