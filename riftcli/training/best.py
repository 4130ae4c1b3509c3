"""The weights that a run keeps: written, read back and compared, and put in place for the report."""

from __future__ import annotations

import copy
from typing import Any

from riftcli import dist
from riftcli.files import write_text
from riftcli.models.image_text import text_tower
from riftcli.models.model_card import model_card
from riftcli.models.peft_format import save_adapter
from riftcli.models.surgery import merge
from riftcli.models.weights import check_saved, model_folder, read_config, save_folder, saved_state
from riftcli.training.state import TrainState


def keep_model(state: TrainState, epoch: int) -> None:
    """Write the weights as they are now to model/, an adapter's own to adapter/ too, and check that they come back."""
    if state.folder is None:
        return
    network, recipe = state.setup.network, state.setup.recipe
    if network.head is not None:
        network.head.refresh()
    kind, spec = recipe.adapter.saved, recipe.resolved["adapter"]
    folder = state.folder.path / "model"
    extra: dict[str, Any] = {"epoch": epoch, "task": recipe.objective.task}
    if kind == "unmerged":
        extra["adapter"] = spec
    shipped = merge(copy.deepcopy(network.vit)) if kind == "merged" else network.vit
    save_folder(folder, shipped, state.setup.data.splits.train.classes, network.preprocessing, {"rift": extra})
    write_text(folder / "README.md", model_card(recipe.resolved, epoch, kind != "unmerged", text_tower(network.vit) is not None))
    if kind != "plain":
        start = recipe.train.start_from  # what the factors are added to
        base = recipe.model.name if start is None else f"local-dir:{model_folder(start)}"
        save_adapter(state.folder.path / "adapter", network.vit, spec, base)
    check_saved(folder, network.vit, network.preprocessing.input_size)


def load_kept(state: TrainState) -> int | None:
    """The best weights, from rank 0's disk to every rank, with adapters folded in; returns their epoch.

    Training is over: nothing that was frozen or inserted is needed any more.
    """
    vit, epoch = state.setup.network.vit, None
    if state.setup.recipe.adapter.saved == "merged":
        merge(vit)
    if state.folder:
        vit.load_state_dict(saved_state(state.folder.path / "model"))
        epoch = read_config(state.folder.path / "model")["rift"]["epoch"]
    dist.broadcast_tensors(list(vit.state_dict().values()))
    return epoch
