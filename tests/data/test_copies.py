"""Copies of images between splits, by size and content, against comparing every pair."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from riftcli.data.copies import copies_between
from riftcli.data.datasets.csv_table import CsvTable
from riftcli.data.images import FileReader
from riftcli.data.split import Split


def split(name: str, paths: list[Path]) -> Split:
    return Split(name, [p.name for p in paths], np.zeros(len(paths), dtype=np.int64), ["a"], FileReader(paths), paths=paths)


def test_copies_are_found_whatever_they_are_called(tmp_path):
    rng = np.random.default_rng(0)
    contents = [
        rng.bytes(int(n)) for n in rng.choice([10, 20, 40_000], 60)
    ]  # many of one size, some longer than what is read first
    contents[7] = contents[3][:-1] + b"x"  # differs in its last byte
    splits = {}
    for name in ("train", "val", "test"):
        paths = []
        for k in range(25):
            path = tmp_path / name / f"{name}{k}.png"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(contents[int(rng.integers(60))])
            paths.append(path)
        splits[name] = split(name, paths)
    found = copies_between(splits)
    expected: dict = {}
    names = list(splits)
    for a, first in enumerate(names):
        for second in names[a + 1 :]:
            bytes_of = {p.read_bytes() for p in splits[first].paths}
            ids = [p.name for p in splits[second].paths if p.read_bytes() in bytes_of]
            if ids:
                expected[first, second] = ids
    assert len(expected) == 3
    assert {key: sorted(ids) for key, ids in found.items()} == {key: sorted(ids) for key, ids in expected.items()}


def test_the_same_file_under_one_id_is_an_overlap_and_no_copy(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"abc")
    assert copies_between({"train": split("train", [path]), "test": split("test", [path])}) == {}


def test_a_file_that_is_gone_does_not_end_the_search(tmp_path):
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    for path in paths:
        path.write_bytes(b"abc")
    lost = tmp_path / "lost.png"
    found = copies_between({"train": split("train", [paths[0], lost]), "test": split("test", [paths[1], lost])})
    assert found == {("train", "test"): ["b.png"]}


def test_a_table_of_absolute_paths(tmp_path):
    from PIL import Image

    (tmp_path / "elsewhere").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "elsewhere" / "x.png")
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "labels.csv").write_text(f"image,label\n{tmp_path}/elsewhere/x.png,0\n")
    source = CsvTable(str(tmp_path / "root"), {"train": "labels.csv"}, images="absolute", label_column="label")
    assert source.load("train").paths == [tmp_path / "elsewhere" / "x.png"]
