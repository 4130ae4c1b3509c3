"""What a run will cost, measured before it starts: any method, any stream, without data or weights."""

from __future__ import annotations

import pytest

from riftcli import recipe as recipes
from riftcli.training.cost import disk_bytes, measure_step

SEVERAL = {"format": "medfm", "root": "nowhere", "task": "chest"}  # nothing of it is read
CLOTHES = {"format": "demo_fashion", "split": "test", "batch_size": 24}


@pytest.mark.parametrize(
    "changes",
    [
        {"regularizer": {"name": "none"}},
        {"adapter": {"name": "linear"}, "regularizer": {"name": "none"}},
        {"adapter": {"name": "lora"}, "regularizer": {"name": "rsc"}, "augment": {"flip": 0.5}},
        {"regularizer": {"name": "l2sp"}},
        {"regularizer": {"name": "ldifs"}},
        {"regularizer": {"name": "ldifs", "on": "reference"}, "reference": CLOTHES, "augment": {"flip": 0.5}},
        {"regularizer": {"name": "rift", "q": "procrustes", "on": "reference"}, "reference": CLOTHES},
        {"objective": {"name": "bce"}, "data": SEVERAL},
    ],
    ids=str,
)
def test_a_step_of_every_kind_is_measured(tiny_recipe, write_recipe, changes):
    cost = measure_step(recipes.load(str(write_recipe(tiny_recipe | changes))), 10, "cpu")
    assert 0 < cost.seconds_per_image < 5
    assert cost.weight_bytes > 4 * 20_000
    assert cost.disk_bytes <= 1.1 * disk_bytes(cost.weight_bytes, cost.weight_bytes), "a rotation is saved too"


def test_disk_is_counted_as_a_run_writes_it():
    assert disk_bytes(100, 10) == 100 + 3 * (100 + 20)
    assert disk_bytes(100, 10, averaged=True) == 100 + 3 * (100 + 30)
    assert disk_bytes(100, 10, sharded=True) == 100 + 3 * (10 + 20)
