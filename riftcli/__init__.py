"""riftcli: finetune vision transformers without destroying what they already knew."""

from __future__ import annotations

from typing import TYPE_CHECKING

from riftcli.version import __version__ as __version__

if TYPE_CHECKING:
    import torch


def load(run: str) -> torch.nn.Module:
    """Return the finetuned timm model of a finished run, in eval mode.

    `run` is a run folder (its `model/` is used) or a model folder. Raises ModelError when the folder holds no weights.
    The same weights load without this package: `timm.create_model("local-dir:RUN/model", pretrained=True)`, unless they are of
    an adapter that is not a timm layer (adaptformer, vpt).
    """
    from riftcli.models.weights import load_saved

    return load_saved(run)
