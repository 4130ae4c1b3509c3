"""A Cayley rotation whose inverse is carried along: the same Q and gradients as a dense inverse in fp64 gives, or it says so."""

from __future__ import annotations

import pytest
import torch

from riftcli.functional.carried_inverse import LIMIT, unsafe
from riftcli.functional.rotations import CarriedRotation, CayleyRotation

D = 24


def noise(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def dense(weight: torch.Tensor) -> torch.Tensor:
    skew, eye = weight - weight.T, torch.eye(len(weight), dtype=weight.dtype)
    return torch.linalg.inv(eye + skew) @ (eye - skew)


def moved(size: float, dtype: torch.dtype = torch.float64) -> CarriedRotation:
    """A rotation somewhere, whose weight has moved by `size` (spectral norm of K) since its inverse was exact."""
    rotation = CarriedRotation(D).to(dtype)
    step = noise(D, D, seed=2)
    with torch.no_grad():
        rotation.weight.copy_(0.3 * noise(D, D, seed=1))
        rotation.solve()
        rotation.weight += (step * size / torch.linalg.matrix_norm(step - step.T, 2)).to(dtype)
    rotation.follow()
    return rotation


@pytest.mark.parametrize("size", [0.0, 1e-3, 0.1, 0.3])
def test_products_and_gradients_are_those_of_the_dense_rotation(size):
    rotation, rows, pull = moved(size), noise(7, D, seed=3).requires_grad_(), noise(7, D, seed=4)
    assert not unsafe(rotation.error)
    weight = rotation.weight.detach().clone().requires_grad_()
    expected, found = rows @ dense(weight).T, rotation.rotate(rows)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(rotation.matrix(), dense(weight), rtol=1e-8, atol=1e-8)
    ours = torch.autograd.grad((found * pull).sum(), (rows, rotation.weight))
    theirs = torch.autograd.grad((expected * pull).sum(), (rows, weight))
    torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("size", [0.05 * 1.25**i for i in range(20)])
def test_where_it_is_not_close_it_says_so(size):
    """Over moves of all sizes: what is not called unsafe is right to LIMIT^6, and moves below a third are never unsafe."""
    rotation = moved(size)
    error = float((rotation.matrix().detach() - dense(rotation.weight.detach())).abs().max())
    assert bool(unsafe(rotation.error)) or error < 10 * LIMIT**6
    assert not (size < 1 / 3 and unsafe(rotation.error))
    assert not (size > 2 and not unsafe(rotation.error))
    rotation.solve()
    assert not unsafe(rotation.error)
    torch.testing.assert_close(rotation.matrix().detach(), dense(rotation.weight.detach()), rtol=1e-9, atol=1e-9)


def test_what_is_no_number_is_unsafe():
    rotation = CarriedRotation(D)
    with torch.no_grad():
        rotation.weight[0, 1] = torch.nan
    rotation.follow()
    assert unsafe(rotation.error)


def test_over_hundreds_of_steps_in_fp32_it_goes_where_solves_go():
    """The identity to begin with, orthogonal to the end, and the weight of a rotation that is solved for."""
    target = dense(0.1 * noise(D, D, seed=5)).float()
    ways = [CarriedRotation(D), CayleyRotation(D)]
    assert torch.equal(ways[0].matrix(), torch.eye(D))
    for rotation in ways:
        optimizer = torch.optim.SGD([rotation.weight], lr=0.005, momentum=0.9)
        for _ in range(400):
            optimizer.zero_grad()
            (rotation.matrix() - target).square().sum().backward()
            optimizer.step()
            if isinstance(rotation, CarriedRotation):
                rotation.follow()
                assert not unsafe(rotation.error)
        assert float(rotation.orthogonality_error()) < 1e-5
        assert float((rotation.matrix() - target).detach().abs().max()) < 1e-3 and float(rotation.distance_from_identity()) > 0.3
    torch.testing.assert_close(ways[0].weight, ways[1].weight, rtol=1e-4, atol=1e-5)
