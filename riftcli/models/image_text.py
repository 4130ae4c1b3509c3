"""Two towers in one network: a timm model whose features are image embeddings, and beside it the tower that reads texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import nn

Towers = Literal["both", "image", "text"]
MAX_LOG_SCALE = 4.605170185988092  # ln 100: what CLIP clips the logarithm of its logit scale to


@dataclass(frozen=True)
class TextFormat:
    """How texts become tokens, and what a saved model needs to do the same.

    tokenizer: (texts, length) -> (n, length) int64, longer ones cut; padding: the token behind a text's end; files: name ->
    content, written beside the weights.
    """

    tokenizer: Callable[[list[str], int], torch.Tensor]
    context_length: int
    padding: int
    files: dict[str, bytes]

    def __deepcopy__(self, memo: dict[int, Any]) -> TextFormat:
        """Shared by copies of a network: nothing of it trains."""
        return self

    def tokenize(self, texts: Sequence[str]) -> torch.Tensor:
        """(n, context length); longer texts are cut."""
        return self.tokenizer(list(texts), self.context_length)

    def too_long(self, texts: Sequence[str]) -> int:
        """How many of the texts do not fit into the context."""
        longer = self.tokenizer(list(texts), self.context_length + 1)
        return int((longer[:, -1] != self.padding).sum())


class TextTower(nn.Module):
    """The text side of an open_clip model, with its logit scale. `clip` is that model without its image tower."""

    def __init__(self, clip: nn.Module, text_format: TextFormat) -> None:
        super().__init__()
        self.clip: Any = clip
        self.format = text_format

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """(n, length) -> unit-length embeddings (n, E).

        A tower from Hugging Face masks the padding, so that what all rows have of it is left out first: prompts are short. Towers
        of open_clip's own add a position to every place, and read all of them.
        """
        if hasattr(getattr(self.clip, "text", None), "config"):
            used = int((tokens != self.format.padding).any(0).sum())
            tokens = tokens[:, : max(1, used)]
        return self.clip.encode_text(tokens, normalize=True)

    @property
    def scale(self) -> torch.Tensor:
        """What similarities are multiplied by: exp(logit_scale), ()."""
        return self.clip.logit_scale.exp().reshape(())

    def checkpoint(self) -> None:
        """Recompute the blocks in backward."""
        own = getattr(self.clip, "text", None)
        if own is not None:
            own.set_grad_checkpointing(True)
        else:
            self.clip.transformer.grad_checkpointing = True

    @torch.no_grad()
    def clamp_scale(self) -> None:
        """Keep the scale in [1, 100], as CLIP's training does after every step."""
        self.clip.logit_scale.clamp_(0, MAX_LOG_SCALE)


class Projection(nn.Module):
    """x @ weight, as open_clip writes it: a linear layer with the transposed weight rounds in another way."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.detach().clone())  # (width, E)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(n, width) -> (n, E)."""
        return x @ self.weight


class _Embedding:
    """Mixed into the class of a built timm model: what stands before the head is CLIP's image embedding, of unit length."""

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """Tokens or maps -> unit-length embeddings (n, E); with pre_logits=False through the classifier."""
        model: Any = self
        embedding = F.normalize(model.projection(super().forward_head(x)), dim=-1)  # type: ignore[misc]
        return embedding if pre_logits else model.class_head(embedding)

    def get_classifier(self) -> nn.Module:
        """The layer after the embedding; it may start as the zero-shot head."""
        return self.class_head  # type: ignore[attr-defined]

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A fresh linear layer on the embedding; none for 0 classes."""
        model: Any = self
        model.num_classes = num_classes
        model.class_head = nn.Linear(model.num_features, num_classes) if num_classes else nn.Identity()


def add_embedding(trunk: Any, projection: nn.Module, width: int) -> Any:
    """Make the embedding (of `width` dimensions) the features of a built timm model without a head, in place.

    Adapters, attention maps and everything else that knows timm's blocks go on as they did: no module is moved.
    """
    own = type(trunk)
    trunk.__class__ = type(f"{own.__name__}WithEmbedding", (_Embedding, own), {"__module__": __name__})
    trunk.projection = projection
    trunk.num_features = width
    trunk.pretrained_cfg = {**trunk.pretrained_cfg, "classifier": "class_head"}
    trunk.reset_classifier(0)
    return trunk


def text_tower(vit: Any) -> TextTower | None:
    """The tower beside an image tower; None for a network that reads images alone."""
    return getattr(vit, "text_tower", None)


def train_towers(vit: Any, towers: Towers, reads_texts: bool, reads_scale: bool) -> None:
    """Freeze the text tower unless it is to train and something reads it; after an adapter's own surgery.

    reads_scale: whether a loss depends on the logit scale, which then trains.
    """
    text = text_tower(vit)
    if text is None:
        return
    text.requires_grad_(reads_texts and towers != "image")
    text.clip.logit_scale.requires_grad_(reads_scale)
    if getattr(text.clip, "logit_bias", None) is not None:
        text.clip.logit_bias.requires_grad_(False)  # of sigmoid pretraining; no loss here has one
    if towers == "text":
        for name, parameter in vit.named_parameters():
            if not name.startswith(("text_tower.", "class_head.")):
                parameter.requires_grad_(False)


@torch.no_grad()
def class_embeddings(text: TextTower, texts: Sequence[Sequence[str]], device: torch.device, batch: int = 256) -> torch.Tensor:
    """The zero-shot classifier without its scale: per class all texts encoded, averaged, and brought to unit length; (C, E).

    texts: the prompts of each class, equally many or not (Radford et al. 2021, section 3.1.4).
    """
    flat = [line for own in texts for line in own]
    rows = encode_texts(text, flat, device, batch)
    starts = torch.tensor([0, *[len(own) for own in texts]]).cumsum(0).tolist()
    means = torch.stack([rows[start:stop].mean(0) for start, stop in zip(starts[:-1], starts[1:], strict=True)])
    return F.normalize(means, dim=-1)


@torch.no_grad()
def encode_texts(text: TextTower, texts: Sequence[str], device: torch.device, batch: int = 256) -> torch.Tensor:
    """Unit-length embeddings (n, E), fp32, on the tower's device; in eval mode, outside autocast."""
    training = text.training
    text.eval()
    with torch.autocast(device.type, enabled=False):
        parts = [text(text.format.tokenize(texts[i : i + batch]).to(device)).float() for i in range(0, len(texts), batch)]
    text.train(training)
    return torch.cat(parts)


class ZeroShotHead:
    """The classifier as the text tower makes it: renewed when that tower has moved. texts: the prompts of each class."""

    def __init__(self, vit: Any, texts: Sequence[Sequence[str]]) -> None:
        self.vit, self.texts = vit, texts
        self._seen: tuple[int, ...] | None = None

    def refresh(self) -> None:
        """Encode the prompts again unless no weight of the text tower was written since."""
        tower = text_tower(self.vit)
        assert tower is not None
        versions = tuple(parameter._version for parameter in tower.parameters())
        if versions != self._seen:
            set_zero_shot_head(self.vit, self.texts)
            self._seen = versions


@torch.no_grad()
def set_zero_shot_head(vit: Any, texts: Sequence[Sequence[str]]) -> None:
    """Make the classifier the zero-shot head of the text tower as it is now: exp(logit_scale) * class embeddings, bias 0."""
    text, head = text_tower(vit), vit.get_classifier()
    assert text is not None
    head.weight.copy_(text.scale * class_embeddings(text, texts, head.weight.device))
    head.bias.zero_()
