"""A device that is none: its tensors lie in main memory, and what no GPU would do with them is an error.

Tests run whole commands on it where there is no GPU. A product of a tensor there and one on the CPU, `.numpy()` of one there, a
CPU tensor indexed by one there: all of that works as long as everything is on the CPU, and fails for whoever has a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map_only

DEVICE = torch.device("meta")  # whose gradients torch computes in the calling thread


class There(torch.Tensor):
    """A tensor on the device; `here` is what it holds."""

    here: torch.Tensor

    @staticmethod
    def __new__(cls, here: torch.Tensor) -> There:
        return torch.Tensor._make_wrapper_subclass(
            cls, here.shape, strides=here.stride(), storage_offset=here.storage_offset(), dtype=here.dtype, device=DEVICE
        )

    def __init__(self, here: torch.Tensor) -> None:
        self.here = here

    def __repr__(self) -> str:
        return f"There({self.here!r})"

    def tolist(self) -> Any:
        """A copy to the host, as on a GPU."""
        return self.here.tolist()

    def numpy(self, *more: Any, **options: Any) -> Any:
        """As on a GPU."""
        raise TypeError("can't convert a tensor on the device to numpy. Use Tensor.cpu() first.")

    __array__ = numpy

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})


CROSSES = {"_to_copy", "copy_"}


def run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    name = func.__name__.partition(".")[0]
    tensors = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, torch.Tensor)]
    there = [value for value in tensors if isinstance(value, There)]
    here = [value for value in tensors if not isinstance(value, There) and value.dim() > 0]
    target = kwargs.get("device")
    if there and here and name not in CROSSES:
        indexed = name.startswith(("index", "_index_put", "_unsafe_index")) and isinstance(args[0], There)
        if not (indexed and all(value.dtype in (torch.long, torch.bool, torch.uint8) for value in here)):
            shapes = ", ".join(f"{tuple(v.shape)} {'there' if isinstance(v, There) else 'on the CPU'}" for v in tensors)
            raise RuntimeError(f"Expected all tensors to be on the same device: {func} of {shapes}")
    goes = bool(there)
    if target is not None:
        goes = torch.device(target).type == DEVICE.type
        kwargs = {**kwargs, "device": torch.device("cpu")}
    if name == "copy_":
        goes = isinstance(args[0], There)
    plain_args, plain_kwargs = tree_map_only(There, lambda value: value.here, (args, kwargs))
    found = func(*plain_args, **plain_kwargs)
    if not goes:
        if name == "_to_copy" and there and found.data_ptr() == there[0].here.data_ptr():
            found = found.clone()
        return found
    wrapped = tree_map_only(torch.Tensor, lambda value: value if isinstance(value, There) else There(value), found)
    return return_and_correct_aliasing(func, args, kwargs, wrapped) if there else wrapped


class Factories(TorchDispatchMode):
    """What is made on the device from nothing, and what is sent there."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})


@contextmanager
def pretended(monkeypatch: Any) -> Iterator[torch.device]:
    """Inside the block DEVICE can be trained on."""
    real = torch.autocast

    class Autocast(real):  # type: ignore[misc, valid-type]
        def __init__(self, device_type: str, *more: Any, **options: Any) -> None:
            super().__init__("cpu" if device_type == DEVICE.type else device_type, *more, **options)

    def sent(make: Any) -> Any:
        """torch makes nothing out of numbers on a device without memory."""

        def made(data: Any, *more: Any, device: Any = None, **options: Any) -> torch.Tensor:
            found = make(data, *more, **options)
            return found if device is None else found.to(device)

        return made

    monkeypatch.setattr(torch, "autocast", Autocast)
    monkeypatch.setattr(torch, "inference_mode", torch.no_grad)  # which wrapped tensors cannot be in
    for name in ("tensor", "as_tensor"):
        monkeypatch.setattr(torch, name, sent(getattr(torch, name)))
    with Factories():
        yield DEVICE
