"""The official counts, on real copies: set RIFT_REAL_DATA to a folder that holds isic2018/, aptos2019/, medfm/, CUB_200_2011/."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from riftcli.data.classes import class_counts
from riftcli.data.datasets.aptos2019 import Aptos2019
from riftcli.data.datasets.cub200 import Cub200
from riftcli.data.datasets.isic2018 import Isic2018
from riftcli.data.datasets.medfm import MedFm

ROOT = Path(os.environ.get("RIFT_REAL_DATA", "/nonexistent"))

COUNTS = {"train": {"chest": 979, "colon": 2358, "endo": 929}, "test": {"chest": 3869, "colon": 7651, "endo": 2936}}
CHALLENGE = {"train": {"chest": 2140, "colon": 5654, "endo": 1810}, "test": {"chest": 2708, "colon": 4355, "endo": 2055}}


def root(name: str) -> str:
    if not (ROOT / name).is_dir():
        pytest.skip(f"no {name} in RIFT_REAL_DATA")
    return str(ROOT / name)


def test_isic():
    source = Isic2018(root("isic2018"))
    assert [len(source.load(name)) for name in ("train", "val", "test")] == [10015, 193, 1512]


def test_aptos():
    source = Aptos2019(root("aptos2019"))
    assert [len(source.load(name)) for name in ("train", "val", "test")] == [2930, 366, 366]
    assert list(class_counts(source.load("train")).values()) == [1434, 300, 808, 154, 234]


@pytest.mark.parametrize("task", ["chest", "colon", "endo"])
@pytest.mark.parametrize("split", ["train", "test"])
def test_medfm(task, split):
    for protocol, expected in (("official", COUNTS), ("challenge", CHALLENGE)):
        assert len(MedFm(root("medfm"), task, protocol).load(split)) == expected[split][task]
    if task == "endo":
        positives = {"train": [220, 250, 153, 108], "test": [570, 701, 237, 28]}
        assert list(class_counts(MedFm(root("medfm"), task).load(split)).values()) == positives[split]


def test_cub():
    root("CUB_200_2011")
    source = Cub200(str(ROOT))
    assert [len(source.load(name)) for name in ("train", "test")] == [5994, 5794]
