"""riftcli: finetune vision transformers without destroying what they already knew.

>>> run = riftcli.finetune("demo_rift")
>>> riftcli.evaluate(run, metrics=["acc", "cka"])
"""

from __future__ import annotations

from os import PathLike
from typing import TYPE_CHECKING, Any

from riftcli.version import __version__ as __version__

if TYPE_CHECKING:
    import torch

    from riftcli.api.notebook import compare as compare
    from riftcli.api.notebook import evaluate as evaluate
    from riftcli.api.notebook import finetune as finetune
    from riftcli.api.run import Run as Run
    from riftcli.models.feature_map import FeatureMap

__all__ = ["Run", "__version__", "compare", "evaluate", "finetune", "load", "load_map"]


def load(run: str | PathLike[str] | Run) -> torch.nn.Module:
    """Return the finetuned timm model of a finished run, in eval mode.

    `run` is a Run, a run folder (its `model/` is used) or a model folder. Raises ModelError when the folder holds no weights.
    The same weights load without this package: `timm.create_model("local-dir:RUN/model", pretrained=True)`, unless they are of
    an adapter that is not a timm layer (adaptformer, vpt).
    """
    from riftcli.models.weights import load_saved

    return load_saved(run if isinstance(run, str | PathLike) else run.path)


def load_map(path: str | PathLike[str]) -> FeatureMap:
    """The map between two models' features that `rift align` wrote: its folder or file. Raises ModelError.

    `load_map(p).to_old(new_features)` are rows that the old model's gallery can be searched with, by cosine.
    """
    from pathlib import Path

    from riftcli.models.feature_map import load_map as opened

    return opened(Path(path))


def __getattr__(name: str) -> Any:
    """Import the rest when it is used: `import riftcli` stays light."""
    import random

    if name not in ("finetune", "evaluate", "compare", "Run"):
        raise AttributeError(f"module 'riftcli' has no attribute {name!r}")
    before = random.getstate()  # a library draws from it while it is imported
    from riftcli.api import notebook

    random.setstate(before)
    return getattr(notebook, name)
