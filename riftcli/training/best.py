"""The weights that a run keeps: written, read back and compared, and put in place for the report."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import nn

from riftcli import catalog, dist
from riftcli.errors import StorageError
from riftcli.models.model_card import model_card
from riftcli.models.peft_format import save_adapter
from riftcli.models.surgery import merge
from riftcli.models.weights import load_saved, read_config, save_folder
from riftcli.training.state import Session

TOLERANCE = 1e-4  # of logits, against the largest of them


def keep_model(session: Session, epoch: int) -> None:
    """Write the weights as they are now to model/, an adapter's own to adapter/ too, and check that they come back."""
    if session.folder is None:
        return
    parts, recipe = session.parts, session.parts.recipe
    kind, spec = recipe.adapter.saved, recipe.resolved["adapter"]
    folder = session.folder.path / "model"
    extra: dict[str, Any] = {"epoch": epoch, "task": recipe.objective.task}
    if kind == "unmerged":
        extra["adapter"] = spec
    shipped = merge(copy.deepcopy(parts.vit)) if kind == "merged" else parts.vit
    save_folder(folder, shipped, parts.splits.train.classes, parts.preprocessing, {"rift": extra})
    (folder / "README.md").write_text(model_card(recipe.resolved, epoch, kind != "unmerged"), encoding="utf-8")
    if kind != "plain":
        save_adapter(session.folder.path / "adapter", parts.vit, spec, recipe.model.name)
    check_saved(folder, parts.vit, parts.preprocessing.input_size)


def load_kept(session: Session) -> int | None:
    """The best weights, from rank 0's disk to every rank, with adapters folded in; returns their epoch.

    Training is over: nothing that was frozen or inserted is needed any more.
    """
    from safetensors.torch import load_file

    vit, epoch = session.parts.vit, None
    if session.parts.recipe.adapter.saved == "merged":
        merge(vit)
    if session.folder:
        vit.load_state_dict(load_file(session.folder.path / "model" / "model.safetensors"))
        epoch = read_config(session.folder.path / "model")["rift"]["epoch"]
    dist.broadcast_tensors(list(vit.state_dict().values()))
    return epoch


@torch.inference_mode()
def check_saved(folder: Path, vit: nn.Module, input_size: tuple[int, int, int]) -> None:
    """Raise StorageError unless the folder gives the same logits on one fixed batch: an adapter saved without its head, a
    merge that does nothing and a half-written file all look well until somebody uses them.

    On the CPU in fp32: a GPU's convolutions round to TF32, which a folded weight does in another way.
    """
    images = torch.randn(2, *input_size, generator=torch.Generator().manual_seed(0))
    with torch.random.fork_rng(devices=[]), torch.autocast("cpu", enabled=False):
        expected: Any = copy.deepcopy(vit).cpu().eval()(images)
        got: Any = load_saved(folder, catalog.adapt)(images)
    error = float((got - expected).abs().max())
    if not error <= TOLERANCE * max(1.0, float(expected.abs().max())):
        raise StorageError(
            f"{folder}: the saved weights give other logits than the model in memory (difference {error:.3g}); a full disk, or a "
            "bug: please report it with the recipe"
        )
