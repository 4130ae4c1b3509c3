"""The weights that a run keeps: written, read back and compared, and put in place for the report."""

from __future__ import annotations

from typing import Any

from riftcli import dist
from riftcli.files import write_text
from riftcli.models.image_text import text_tower
from riftcli.models.model_card import model_card
from riftcli.models.peft_format import save_adapter
from riftcli.models.sharding import is_sharded, load_whole, take_out_updates
from riftcli.models.surgery import merge
from riftcli.models.weights import check_outputs, check_saved, model_folder, outputs, read_config, save_folder, saved_state
from riftcli.training.state import TrainState


def keep_model(state: TrainState, epoch: int) -> None:
    """Write the weights as they are now to model/, an adapter's own to adapter/ too, while training goes on.

    The first time it is waited for, and what was written is read back and compared: what is wrong then is wrong at the end of
    the run too, where that is done once more.
    """
    network, recipe = state.setup.network, state.setup.recipe
    if state.folder is None:
        if is_sharded(network.vit):
            network.on_cpu(recipe.adapter)  # rank 0 asks for our part
        return
    if network.head is not None:
        network.head.refresh()
    state.writer.wait("model")
    place, vit, first = state.folder.path, network.on_cpu(recipe.adapter), state.expected is None
    kind, spec = recipe.adapter.saved, recipe.resolved["adapter"]

    def write() -> None:
        state.expected = outputs(vit, network.preprocessing.input_size)
        if kind != "plain":
            start = recipe.train.start_from  # what the factors are added to
            base = recipe.model.name if start is None else f"local-dir:{model_folder(start)}"
            save_adapter(place / "adapter", vit, spec, base)
        extra: dict[str, Any] = {"epoch": epoch, "task": recipe.objective.task}
        if kind == "unmerged":
            extra["adapter"] = spec
        shipped, folder = merge(vit) if kind == "merged" else vit, place / "model"
        save_folder(folder, shipped, state.setup.data.splits.train.classes, network.preprocessing, {"rift": extra})
        card = model_card(recipe.resolved, epoch, kind != "unmerged", text_tower(network.vit) is not None)
        write_text(folder / "README.md", card)

    state.writer.submit("model", write)
    if first:
        check_kept(state)


def check_kept(state: TrainState, vit: Any = None) -> None:
    """Raise StorageError where the folder of weights gives other outputs than the network that was kept. vit: in place of the
    network in memory, where that is in parts.
    """
    state.writer.wait("model")
    if state.folder is None:
        return
    network, folder = state.setup.network, state.folder.path / "model"
    of_checkpoint = read_config(folder)["rift"]["epoch"] == state.progress.best_epoch
    # kept before an interruption, or after the last checkpoint before it: what is in memory now has been read from there
    if state.expected is None or not of_checkpoint:
        check_saved(folder, vit or network.vit, network.preprocessing.input_size)
    else:
        check_outputs(folder, state.expected, network.preprocessing.input_size)


def load_kept(state: TrainState) -> int | None:
    """The best weights, from rank 0's disk to every rank, with adapters folded in; returns their epoch.

    Training is over: nothing that was frozen or inserted is needed any more.
    """
    state.writer.wait()
    vit, epoch = state.setup.network.vit, None
    if is_sharded(vit):
        return _load_kept_parts(state)
    if state.setup.recipe.adapter.saved == "merged":
        merge(vit)
    if state.folder:
        vit.load_state_dict(saved_state(state.folder.path / "model"))
        epoch = read_config(state.folder.path / "model")["rift"]["epoch"]
        check_kept(state)
    dist.broadcast_tensors(list(vit.state_dict().values()))
    return epoch


def _load_kept_parts(state: TrainState) -> int | None:
    """`load_kept` of a network that is shared out."""
    network, epoch, saved = state.setup.network, None, None
    if state.folder:
        saved, epoch = saved_state(state.folder.path / "model"), read_config(state.folder.path / "model")["rift"]["epoch"]
    take_out_updates(network.vit)
    load_whole(network.vit, saved)
    check_kept(state, network.on_cpu(None))
    return epoch
