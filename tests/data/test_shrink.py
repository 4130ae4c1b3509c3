"""`rift data shrink`: same ids, labels, groups and splits; what was done is not done again; a recipe trains on the copy."""

from __future__ import annotations

import csv
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from riftcli import recipe as recipes
from riftcli.data.splits import load_splits
from riftcli.protocols import UNKNOWN


def splits_of(recipe):
    data = recipe.data
    return load_splits(data.source, data.train, data.val, data.test, data.rules)


def manifest(folder: str) -> list[list[str]]:
    with (Path(folder) / "manifest.csv").open(newline="") as file:
        return list(csv.reader(file))


@pytest.fixture
def scans(tmp_path) -> dict:
    rng = np.random.default_rng(0)
    root = tmp_path / "scans"
    (root / "deep").mkdir(parents=True)
    rows = []
    for i in range(24):
        name = f"deep/{i}.png" if i % 2 else f"{i}.jpg"
        Image.fromarray(rng.integers(0, 256, (40 + i, 60, 3), dtype=np.uint8)).save(root / name)
        rows.append([name, [1, 0, -1][i % 3], i % 2, f"p{i // 2}"])
    with (root / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["image", "mass", "label", "patient"], *rows])
    return {
        "format": "csv_table", "root": str(root), "labels": {"all": "labels.csv"}, "task": "multilabel", "train": "all",
        "label_columns": ["mass", "label"], "uncertain": "ignore", "group_columns": ["patient"],
        "val": {"fraction": 0.2, "from": "all", "group": "patient"}, "test": {"fraction": 0.3, "from": "all", "group": "patient"},
    }  # fmt: skip


def test_a_copy_is_the_same_data_smaller_and_goes_on_where_it_was(rift, tiny_recipe, write_recipe, scans, tmp_path):
    tiny_recipe |= {"data": scans, "objective": {"name": "bce"}, "regularizer": {"name": "none"}}
    tiny_recipe["train"] |= {"epochs": 1, "batch_size": 4}
    tiny_recipe["eval"] |= {"metrics": ["acc"]}
    path = str(write_recipe(tiny_recipe))
    code, _, err = rift("data", "shrink", "small", "--recipe", path, "--size", "32")
    assert code == 0, err
    assert err.splitlines()[-1] == f'next: rift finetune --recipe {path} --set "data=$(cat small/data.yaml)"'
    section = yaml.safe_load(Path("small/data.yaml").read_text())
    before = splits_of(recipes.load(path, []))
    after = splits_of(recipes.load(path, [f"data={Path('small/data.yaml').read_text()}"]))
    for name, old in before.named().items():
        new = after.named()[name]
        assert (new.ids, new.classes, new.groups) == (old.ids, old.classes, old.groups)
        assert np.array_equal(new.targets, old.targets)
        for i in range(len(old)):
            whole, small = old.read(i), new.read(i)
            assert min(small.size) == 32
            assert small.size[0] / small.size[1] == pytest.approx(whole.size[0] / whole.size[1], abs=0.02)
            expected = np.asarray(whole.resize(small.size, Image.Resampling.BICUBIC), dtype=float)
            assert np.abs(np.asarray(small, dtype=float) - expected).mean() < 6, "JPEG of noise at quality 95"
    assert (before.train.targets == UNKNOWN).any()
    assert section["uncertain"] == "ignore"
    rows = manifest("small")
    assert len(rows) == 24
    for _, file, digest, size in rows:
        content = (Path("small") / file).read_bytes()
        assert (hashlib.sha256(content).hexdigest(), len(content)) == (digest, int(size))
    # killed: one image lost, one half written, no table
    for row in rows[:2]:
        (Path("small") / row[1]).unlink()
    Path("small/labels.csv").unlink()
    kept = (Path("small") / rows[5][1]).stat().st_mtime_ns
    assert rift("data", "shrink", "small", "--recipe", path, "--size", "32")[0] == 0
    assert (Path("small") / rows[5][1]).stat().st_mtime_ns == kept
    assert len(manifest("small")) == 26
    code, _, err = rift("finetune", "--recipe", path, "--set", f"data={Path('small/data.yaml').read_text()}", "--out", "run")
    assert code == 0, err
    assert json.loads(Path("run/metrics.json").read_text())["data"]["n"] == len(before.test)
    code, _, err = rift("data", "shrink", "small", "--recipe", path, "--size", "16")
    assert (code, err) == (2, "error: small: was begun with other images or settings; choose another folder, or remove it\n")
    assert rift("data", "shrink", "run", "--recipe", path)[2] == "error: run: holds something else; choose an empty folder\n"


def test_nothing_is_enlarged_and_png_keeps_every_pixel(rift, tiny_recipe, write_recipe):
    path = str(write_recipe(tiny_recipe))  # digits: images without files
    code, _, err = rift("data", "shrink", "copy", "--recipe", path, "--size", "64", "--format", "png")
    assert code == 0, err
    before = splits_of(recipes.load(path, []))
    after = splits_of(recipes.load(path, [f"data={Path('copy/data.yaml').read_text()}"]))
    for name, old in before.named().items():
        new = after.named()[name]
        assert (new.ids, new.classes, new.targets.tolist()) == (old.ids, old.classes, old.targets.tolist())
        assert all(np.array_equal(np.asarray(new.read(i)), np.asarray(old.read(i))) for i in range(len(old)))


def test_a_bad_image_is_named_and_the_others_are_done(rift, tiny_recipe, write_recipe, scans):
    tiny_recipe |= {"data": scans, "objective": {"name": "bce"}}
    (Path(scans["root"]) / "4.jpg").write_bytes(b"no image")
    code, _, err = rift("data", "shrink", "small", "--recipe", write_recipe(tiny_recipe), "--size", "32")
    assert code == 3
    assert "4.jpg: unreadable image" in err
    assert len(manifest("small")) == 23
    assert not Path("small/labels.csv").exists()


def test_leaks_that_were_refused_stay_refused_and_names_do_not_collide(rift, tiny_recipe, write_recipe, scans, tmp_path):
    rows = [line.split(",") for line in (Path(scans["root"]) / "labels.csv").read_text().split()]
    with (Path(scans["root"]) / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([[*row, "fold" if i == 0 else ["train", "test"][i % 2]] for i, row in enumerate(rows)])
    leaky = scans | {"labels": "labels.csv", "split_column": "fold", "train": "train", "test": "test"}
    leaky["val"] = {"fraction": 0.2, "from": "train", "group": "patient"}
    tiny_recipe |= {"data": leaky, "objective": {"name": "bce"}}
    path = str(write_recipe(tiny_recipe))
    code, _, err = rift("data", "shrink", "small", "--recipe", path, "--size", "32")
    assert (code, "group 'patient': " in err) == (3, True)
    assert not Path("small").exists()
    code, _, err = rift("data", "shrink", "small", "--recipe", path, "--size", "32", "--set", "data.allow_overlap=true")
    assert code == 0, err
    assert yaml.safe_load(Path("small/data.yaml").read_text())["allow_overlap"] is True
    both = scans | {"label_columns": ["mass", "patient2"], "group_columns": ["mass2", "image2"]}
    names = {"image": "picture", "mass": "mass", "label": "patient2", "patient": "mass2"}
    header = [names[name] for name in rows[0]]
    with (Path(scans["root"]) / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([[*header, "image2"], *[[*row, row[3]] for row in rows[1:]]])
    tiny_recipe["data"] = both | {"image_column": "picture", "val": {"fraction": 0.2, "from": "all", "group": "mass2"}}
    tiny_recipe["data"] |= {"classes": ["mass2", "image"], "test": {"fraction": 0.2, "from": "all", "group": "mass2"}}
    path = str(write_recipe(tiny_recipe))
    code, _, err = rift("data", "shrink", "odd", "--recipe", path, "--size", "32")
    assert code == 0, err
    before = splits_of(recipes.load(path, []))
    after = splits_of(recipes.load(path, [f"data={Path('odd/data.yaml').read_text()}"]))
    assert after.train.classes == before.train.classes == ["mass2", "image"]
    assert np.array_equal(after.train.targets, before.train.targets)
    assert list(after.train.groups.values()) == list(before.train.groups.values())


def test_a_copy_survives_a_full_disk_and_a_cut_line_and_knows_its_source(rift, tiny_recipe, write_recipe, scans):
    tiny_recipe |= {"data": scans, "objective": {"name": "bce"}}
    path = str(write_recipe(tiny_recipe))
    assert rift("data", "shrink", "small", "--recipe", path, "--size", "32")[0] == 0
    whole = Path("small/manifest.csv").read_text()
    Path("small/manifest.csv").write_text(whole[:-40])  # killed in the middle of a line
    assert rift("data", "shrink", "small", "--recipe", path, "--size", "32")[0] == 0
    assert sorted(manifest("small")) == sorted(csv.reader(whole.splitlines()))
    Path("small/.settings.json.tmp").write_text("{")  # what a full disk leaves
    Path("small/settings.json").unlink()
    for name in ("images", "manifest.csv", "labels.csv", "data.yaml"):
        Path("small", name).rename(Path("small", f".{name}"))
    assert rift("data", "shrink", "small", "--recipe", path, "--size", "32")[0] == 0
    Image.new("RGB", (50, 50)).save(Path(scans["root"]) / "0.jpg")  # another picture under an old name
    code, _, err = rift("data", "shrink", "small", "--recipe", path, "--size", "32")
    assert (code, err) == (2, "error: small: was begun with other images or settings; choose another folder, or remove it\n")
