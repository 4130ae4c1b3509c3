"""A frozen backbone shared out over ranks (FSDP2): each holds a part of every block, and gathers a block when it runs it."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from riftcli import dist
from riftcli.errors import UsageError
from riftcli.models.image_text import text_tower
from riftcli.models.layers.low_rank import LoraLinear
from riftcli.models.surgery import blocks, freeze_backbone, model_name

ENTRANCES = ("forward_features", "forward_intermediates")  # what is called of a backbone in place of its forward


def outline(vit: nn.Module) -> nn.Module:
    """A copy with tensors without storage (device meta) for weights; buffers are copied."""
    weights = {id(p): nn.Parameter(torch.empty_like(p, device="meta"), p.requires_grad) for p in vit.parameters()}
    return copy.deepcopy(vit, weights)


def shard_backbone(vit: Any, device: torch.device) -> None:
    """Freeze a backbone and shard the weights of its blocks over all ranks, in place; the rest is moved to the device whole.

    From then on every forward is collective. What is put into the blocks later (adapters) is not sharded. Sharding follows the
    order of rows, and blocks are gathered as they were: outputs are those of the whole network, to the bit.

    Raises UsageError for a model with two towers or without blocks in a row.
    """
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    if text_tower(vit) is not None:
        raise UsageError(f"train.shard_frozen: {model_name(vit)} has two towers; only a backbone of images can be shared out")
    found = blocks(vit, "lora")
    freeze_backbone(vit)
    outside = set(vit.parameters()) - {p for block in found for p in block.parameters()}
    mesh = torch.distributed.init_device_mesh(device.type, (dist.world_size(),))
    for block in found:  # one after the other, and nobody else refers to its weights: no device holds the whole network
        fully_shard(block, mesh=mesh, reshard_after_forward=True)
    fully_shard(vit, mesh=mesh, reshard_after_forward=True, ignored_params=outside)
    for name in ENTRANCES:
        if hasattr(vit, name):
            register_fsdp_forward_method(vit, name)
    vit.to(device)
    vit.rift_sharded = True


def is_sharded(model: Any) -> bool:
    """Whether a backbone, or what is wrapped around one, is shared out, so that all ranks must run it together."""
    return bool(getattr(getattr(model, "vit", model), "rift_sharded", False))


def sharded_names(module: nn.Module) -> list[str]:
    """Names of the weights that no rank holds whole."""
    from torch.distributed.tensor import DTensor

    return [name for name, p in module.named_parameters() if isinstance(p, DTensor)]


def held_bytes(vit: nn.Module) -> tuple[int, int]:
    """Of the weights that are shared out: those on this rank, and all."""
    from torch.distributed.tensor import DTensor

    shared = [p for p in vit.parameters() if isinstance(p, DTensor)]
    return sum(p.to_local().nbytes for p in shared), sum(p.numel() * p.element_size() for p in shared)


def own_state(vit: nn.Module) -> dict[str, torch.Tensor]:
    """The state without what is shared out, which never changes; the whole state of any other network."""
    state = vit.state_dict()
    shared = set(sharded_names(vit)) if is_sharded(vit) else set()
    return {name: tensor for name, tensor in state.items() if name not in shared}


def whole_copy(vit: nn.Module, like: nn.Module) -> nn.Module | None:
    """The network of a sharded one in one piece, on rank 0's CPU; None on the others. Collective.

    like: its outline, with the same layers; it gets the weights.
    """
    from torch.distributed.tensor import DTensor

    found = {}
    for name, tensor in vit.state_dict().items():
        whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if dist.is_main():
            found[name] = whole.detach().cpu().clone()
    if not dist.is_main():
        return None
    like.load_state_dict(found, assign=True)
    return like


@torch.no_grad()
def load_whole(vit: nn.Module, state: dict[str, torch.Tensor] | None) -> None:
    """Put rank 0's state into a sharded network. Collective."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    for name, own in vit.state_dict().items():
        value = torch.empty(own.shape, dtype=own.dtype, device=own.device)
        if state is not None:
            value.copy_(state[name])
        dist.broadcast_tensors([value])
        if isinstance(own, DTensor):
            own.copy_(distribute_tensor(value, own.device_mesh, own.placements, src_data_rank=None))
        else:
            own.copy_(value)


def take_out_updates(vit: nn.Module) -> None:
    """Put the frozen layers back in the place of those around them; their updates are lost."""
    for name, module in list(vit.named_modules()):
        if isinstance(module, LoraLinear):
            parent, _, attribute = name.rpartition(".")
            setattr(vit.get_submodule(parent), attribute, module.base)


@contextmanager
def as_pretrained(vit: nn.Module) -> Iterator[None]:
    """Without low-rank updates, and in eval mode: the features are those of the frozen weights. A second copy of a network that
    does not fit one device would not fit either.
    """
    modes = [(module, module.training) for module in vit.modules()]
    updated = [module for module in vit.modules() if isinstance(module, LoraLinear)]
    vit.eval()
    for layer in updated:
        layer.updates = False
    try:
        yield
    finally:
        for layer in updated:
            layer.updates = True
        for module, training in modes:
            module.training = training
