"""Zero-shot scores: images against classes that are told by their names, and against captions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from riftcli.data.split import Split
from riftcli.evaluation.features import FeatureTable
from riftcli.evaluation.scores import predictions, score
from riftcli.functional.rsa import rsa
from riftcli.functional.thinning import thinned
from riftcli.models.image_text import TextTower, class_embeddings

PAIRS = 2000  # images whose pairwise distances RSA compares, with a text each; more are thinned out, evenly


def zero_shot_weights(tower: TextTower, texts: Sequence[Sequence[str]], device: torch.device) -> torch.Tensor:
    """exp(logit_scale) * class embeddings (C, E), on the CPU; with the scale, so that logits are calibrated as trained."""
    with torch.no_grad():
        return (tower.scale * class_embeddings(tower, texts, device)).float().cpu()


def scored(
    split: Split, features: torch.Tensor, logits: torch.Tensor, metrics: list[str], group: str | None
) -> dict[str, dict[str, Any]]:
    """Metrics of a split from features (N, E) and the logits of its classes (N, C)."""
    return score(metrics, predictions(split, FeatureTable(features, logits), None, group))


def restricted(logits: torch.Tensor, split: Split, classes: Sequence[str]) -> torch.Tensor:
    """Logits (N, C) of a model's classes -> those of the split's (N, C_split); a class with several members takes the largest."""
    place = {name: i for i, name in enumerate(classes)}
    members = split.members or [[name] for name in split.classes]
    return torch.stack([logits[:, [place[name] for name in own]].max(1).values for own in members], 1)


def captions_of(split: Split) -> tuple[list[str], torch.Tensor]:
    """(every caption, the image of each (M,))."""
    assert split.captions is not None
    lines = [text for own in split.captions for text in own]
    owners = [i for i, own in enumerate(split.captions) for _ in own]
    return lines, torch.tensor(owners)


def geometry_kept(
    before: tuple[torch.Tensor, torch.Tensor], after: tuple[torch.Tensor, torch.Tensor], owners: torch.Tensor
) -> dict[str, float | None]:
    """RSA between two models (1 - cosine, Pearson; DiVE App. D) over images and texts together, and over either alone.

    before, after: (images (N, E), texts (M, E)); the first text of each image is taken.
    """
    first = torch.full((int(owners.max()) + 1,), len(owners)).scatter_reduce(0, owners, torch.arange(len(owners)), "amin")
    kept = thinned(len(first), PAIRS)
    old, new = ((images[kept], texts[first[kept]]) for images, texts in (before, after))
    return {
        "rsa": rsa(torch.cat(old), torch.cat(new)),
        "rsa_images": rsa(old[0], new[0]),
        "rsa_texts": rsa(old[1], new[1]),
    }


def mean_of(entries: Sequence[dict[str, Any]], key: str) -> float | None:
    """Plain mean over sets; None unless every set has a number."""
    values = [entry[key] for entry in entries]
    return None if not values or None in values else sum(values) / len(values)
