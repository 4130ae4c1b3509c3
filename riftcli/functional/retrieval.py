"""Which text belongs to an image, and which image to a text: recall at the first few places."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def recall_at(
    images: torch.Tensor, texts: torch.Tensor, owners: torch.Tensor, places: Sequence[int] = (1, 5, 10), chunk: int = 1024
) -> dict[str, float]:
    """Share of images with one of their own texts among the first k, and of texts with their image; exact, a chunk at a time.

    images (N, E), texts (M, E) of unit length; owners (M,): the image of each text. Keys `image_to_text_r1`, `text_to_image_r1`,
    ... A tie counts against the right answer, so that a constant model finds nothing.
    """
    ranks = {"image_to_text": _ranks_of_images(images, texts, owners, chunk), "text_to_image": []}
    for start in range(0, len(texts), chunk):
        own = owners[start : start + chunk]
        table = texts[start : start + chunk] @ images.T  # (m, N)
        right = table.gather(1, own[:, None])
        ranks["text_to_image"].append((table >= right).sum(1) - 1)
    return {f"{way}_r{k}": float((torch.cat(found) < k).double().mean()) for way, found in ranks.items() for k in places}


def _ranks_of_images(images: torch.Tensor, texts: torch.Tensor, owners: torch.Tensor, chunk: int) -> list[torch.Tensor]:
    """Rank of the best of each image's own texts, from 0; other texts that are equally near come before it."""
    found = []
    for start in range(0, len(images), chunk):
        some = images[start : start + chunk]
        table = some @ texts.T  # (n, M)
        own = owners[None] == torch.arange(start, start + len(some))[:, None]
        best = table.masked_fill(~own, float("-inf")).max(1, keepdim=True).values
        found.append(((table >= best) & ~own).sum(1))
    return found
