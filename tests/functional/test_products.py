"""Products with a gradient of their own: against autograd's, in fp64."""

from __future__ import annotations

import pytest
import torch

from riftcli.functional.products import congruence, gram


def matrices(rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(rows, columns, generator=generator, dtype=torch.float64, requires_grad=True)
    s = torch.randn(rows, rows, generator=generator, dtype=torch.float64)
    return w, s + s.T


@pytest.mark.parametrize("shape", [(5, 5), (5, 3), (3, 5)])
def test_value_and_gradient_are_autograd_s(shape):
    w, s = matrices(*shape)
    generator = torch.Generator().manual_seed(1)
    for ours, plain in ((lambda w: congruence(w, s), lambda w: w.T @ s @ w), (gram, lambda w: w @ w.T)):
        torch.testing.assert_close(ours(w), plain(w))
        pull = torch.randn(ours(w).shape, generator=generator, dtype=torch.float64)  # not symmetric
        found, wanted = (torch.autograd.grad((f(w) * pull).sum(), w)[0] for f in (ours, plain))
        torch.testing.assert_close(found, wanted)
        assert torch.autograd.gradcheck(ours, w)
