"""F6 for every optimizer of timm: its state is saved and put back so that it goes on bit for bit, or it is refused by name."""

from __future__ import annotations

import json
import warnings

import pytest
import torch

from riftcli.errors import UsageError
from riftcli.training.checkpoint import named_tensors, pack_optimizer, unpack_optimizer
from riftcli.training.optim import build_optimizer

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from timm.optim import list_optimizers

NAMES = [name for name in list_optimizers() if not name.startswith(("bnb", "fused"))]  # those need a GPU and other packages


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(), torch.nn.Linear(144, 5))


def train(net: torch.nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        optimizer.zero_grad()
        images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(step))
        net(images).square().sum().backward()
        optimizer.step()


def built(net: torch.nn.Module, name: str) -> torch.optim.Optimizer:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return build_optimizer(net, [], name, 1e-3, 0.01)


def test_every_one_goes_on_bitwise():
    failed = {}
    for name in NAMES:
        try:
            whole, cut = network(), network()
            first = built(whole, name)
        except UsageError as error:
            assert name == "adahessian", f"{name}: {error}"
            continue
        torch.manual_seed(7)
        train(whole, first, range(6))
        second = built(cut, name)
        torch.manual_seed(7)
        train(cut, second, range(3))
        tensors, packed = pack_optimizer(second)
        tensors = {key: value.clone() for key, value in tensors.items()}
        packed, random = json.loads(json.dumps(packed, allow_nan=False)), torch.get_rng_state()
        assert named_tensors(packed) == set(tensors)
        resumed = network()
        resumed.load_state_dict(cut.state_dict())
        third = built(resumed, name)
        unpack_optimizer(third, tensors, packed)
        torch.set_rng_state(random)
        train(resumed, third, range(3, 6))
        apart = [not torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True)]
        if any(apart):
            failed[name] = sum(apart)
    assert not failed
    assert {"kron", "lambw", "adafactorbv"} <= set(NAMES)


def test_second_derivatives_are_refused_by_name():
    with pytest.raises(UsageError) as caught:
        built(network(), "adahessian")
    assert str(caught.value) == (
        "optim.name 'adahessian' needs second derivatives, which are not computed here; choose another optimizer"
    )


def test_what_cannot_be_saved_is_named():
    optimizer = torch.optim.SGD(network().parameters(), lr=0.1)
    optimizer.state[optimizer.param_groups[0]["params"][0]]["hook"] = object()
    with pytest.raises(TypeError, match="0/hook is a object, which is not saved"):
        pack_optimizer(optimizer)
