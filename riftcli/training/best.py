"""The weights that a run keeps: written, read back and compared, and put in place for the report."""

from __future__ import annotations

from typing import Any

from riftcli import dist, heartbeat
from riftcli.files import write_text
from riftcli.models.image_text import text_tower
from riftcli.models.model_card import model_card
from riftcli.models.peft_format import save_adapter
from riftcli.models.sharding import is_sharded, load_whole, take_out_updates
from riftcli.models.surgery import merge
from riftcli.models.weights import check_outputs, model_folder, outputs, read_config, save_folder, saved_state
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
        heartbeat.beat("writing the weights")
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
        state.writer.wait("model")
        assert state.expected is not None
        check_outputs(place / "model", state.expected, network.preprocessing.input_size)
        heartbeat.beat("read the weights back")


def _check_kept(state: TrainState) -> None:
    """Raise StorageError where the folder of weights gives other outputs than the network that was kept. Collective where the
    backbone is shared out.
    """
    network, size = state.setup.network, state.setup.network.preprocessing.input_size
    expected = None
    if state.folder and read_config(state.folder.path / "model")["rift"]["epoch"] == state.progress.best_epoch:
        expected = state.expected
    # None: kept before an interruption, or after the last checkpoint before it: what is in memory now has been read from there
    if dist.broadcast_object(expected is None) and (state.folder or is_sharded(network.vit)):
        vit = network.on_cpu(None)
        expected = None if vit is None else outputs(vit, size)
    if state.folder and expected is not None:
        check_outputs(state.folder.path / "model", expected, size)


def load_kept(state: TrainState) -> int | None:
    """The best weights, from rank 0's disk to every rank, with adapters folded in; returns their epoch.

    Training is over: nothing that was frozen or inserted is needed any more.
    """
    state.writer.wait()
    vit, folder = state.setup.network.vit, state.folder.path / "model" if state.folder else None
    if is_sharded(vit):
        take_out_updates(vit)
        load_whole(vit, saved_state(folder) if folder else None)
    else:
        if state.setup.recipe.adapter.saved == "merged":
            merge(vit)
        if folder:
            vit.load_state_dict(saved_state(folder))
        dist.broadcast_tensors(list(vit.state_dict().values()))
    _check_kept(state)
    return read_config(folder)["rift"]["epoch"] if folder else None
