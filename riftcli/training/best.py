"""The weights that a run keeps: written, read back and compared, and put in place for the report."""

from __future__ import annotations

import copy
from typing import Any

from riftcli import dist
from riftcli.models.model_card import model_card
from riftcli.models.peft_format import save_adapter
from riftcli.models.surgery import merge
from riftcli.models.weights import check_saved, read_config, save_folder
from riftcli.training.state import Session


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
