"""The largest of long rows, against torch.topk of whole rows."""

from __future__ import annotations

import pytest
import torch

from riftcli.functional.largest import BLOCK, LONG, largest


@pytest.mark.parametrize("k", [1, 3, 20])
@pytest.mark.parametrize("more", [0, 1, 63])
def test_they_are_those_of_topk(k, more):
    width = BLOCK * LONG * k + more
    table = torch.stack([torch.randperm(width, generator=torch.Generator().manual_seed(i)) for i in range(50)]).double()
    table[0] = torch.arange(width)  # all in the last columns
    table[1] = -torch.arange(width)  # all in the first block
    values, columns = largest(table, k)
    expected = table.topk(k, dim=1)
    assert torch.equal(values, expected.values) and torch.equal(columns, expected.indices)


def test_what_is_left_out_and_what_is_equal():
    table = torch.full((2, 2000), -torch.inf)
    table[0, [5, 1999, 700]] = torch.tensor([1.0, 3.0, 2.0])
    values, columns = largest(table, 5)
    assert values[0].tolist() == [3.0, 2.0, 1.0, -torch.inf, -torch.inf] and columns[0, :3].tolist() == [1999, 700, 5]
    values, columns = largest(torch.ones(3, 4000), 7)
    assert (values == 1).all() and all(len(set(row)) == 7 for row in columns.tolist())
