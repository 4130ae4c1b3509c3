"""Data without a test or validation split: what is cut, what is refused, and what is said about files that are not read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from riftcli import recipe as recipes
from riftcli.data.datasets.csv_table import CsvTable
from riftcli.data.datasets.digits import Digits
from riftcli.data.datasets.image_folder import ImageFolder
from riftcli.data.image_files import image_split
from riftcli.data.leaks import refuse_leaks
from riftcli.data.splits import load_splits, query_and_bank
from riftcli.errors import DataError, UsageError
from riftcli.recipe.data_sources import DataSection, SplitSpec
from riftcli.recipe.image_sections import InputSection

ALL, FIFTH = SplitSpec("all"), SplitSpec("all", fraction=0.2)


def noise(path: Path, seed: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (9, 11, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """Class folders without a split: 10 cats, 5 dogs below a folder of their own."""
    for i in range(10):
        noise(tmp_path / "pets" / "cat" / f"{i}.png", i)
    for i in range(5):
        noise(tmp_path / "pets" / "dog" / "2019" / f"{i}.png", 100 + i)
    return tmp_path / "pets"


def test_class_folders_without_a_split_are_the_split_all(pets):
    splits = load_splits(ImageFolder(str(pets)), ALL, FIFTH, FIFTH)
    assert splits.train.classes == ["cat", "dog"]
    assert {name: len(split) for name, split in splits.named().items()} == {"train": 10, "val": 2, "test": 3}
    assert [split.name for split in splits.named().values()] == ["all", "val", "test"]
    assert np.bincount(splits.test.targets).tolist() == [2, 1], "in proportion"
    ids = [name for split in splits.named().values() for name in split.ids]
    assert len(set(ids)) == 15
    assert "dog/2019/0.png" in ids


def test_what_is_missing_says_how_to_cut_it(pets, tmp_path):
    with pytest.raises(DataError) as caught:
        ImageFolder(str(pets)).load("train")
    assert str(caught.value) == (
        f"image_folder {pets}: no split 'train': its folders are classes (cat, dog), which are the split 'all'; cut the "
        "others from it: --set data.train=all --set 'data.val={fraction: 0.1}' --set 'data.test={fraction: 0.2}'"
    )
    (tmp_path / "whole").mkdir()
    pets.rename(tmp_path / "whole" / "train")
    with pytest.raises(DataError) as caught:
        ImageFolder(str(tmp_path / "whole")).load("test")
    assert str(caught.value) == (
        f"image_folder {tmp_path}/whole: no split 'test'; it has: train; "
        "or cut it from the training split: --set 'data.test={fraction: 0.2}'"
    )


def test_neither_the_limit_nor_the_validation_split_changes_the_test_split():
    wanted = SplitSpec("train", fraction=0.25, seed=3)
    whole = load_splits(Digits(), SplitSpec("train"), None, wanted).test
    few = load_splits(Digits(), SplitSpec("train", limit=100, seed=5), SplitSpec("train", fraction=0.2), wanted)
    assert few.test.ids == whole.ids
    assert (len(few.test), len(few.train), len(few.val)) == (324, 80, 20)
    other = load_splits(Digits(), SplitSpec("train"), None, SplitSpec("train", fraction=0.25, seed=4)).test
    assert other.ids != whole.ids


def test_without_a_test_split_validation_is_the_result():
    data = DataSection("digits", Digits(), SplitSpec("train", limit=50), SplitSpec("train", fraction=0.2), None)
    splits = load_splits(data.source, data.train, data.val, data.test)
    assert (splits.reported_as, splits.reported) == ("val", splits.val)
    query, bank = query_and_bank(data)
    assert query.ids == splits.val.ids
    assert bank.ids == splits.train.ids
    with pytest.raises(UsageError) as caught:
        load_splits(data.source, data.train, None, None)
    assert str(caught.value) == (
        "data.test is null and there is no data.val: nothing would be measured; hold out a share, e.g. "
        "--set 'data.val={fraction: 0.2}', or cross-validate with --folds 5"
    )


def test_the_bank_of_a_knn_is_without_the_test_images_that_were_cut():
    data = DataSection("digits", Digits(), SplitSpec("train"), None, SplitSpec("train", fraction=0.25))
    query, bank = query_and_bank(data)
    assert (len(query), len(bank)) == (324, 973)
    assert not set(query.ids) & set(bank.ids)


@pytest.fixture
def visits(tmp_path: Path) -> CsvTable:
    """Patients p0 to p7 with two images each; p6 has its second one in the test split."""
    rows = ["image,label,patient,site,fold"]
    for i in range(16):
        patient = i // 2
        noise(tmp_path / f"x{i}.png", i)
        fold = "test" if patient == 7 or i == 13 else "train"
        rows.append(f"x{i}.png,{patient % 2},p{patient},s{i % 2},{fold}")
    (tmp_path / "labels.csv").write_text("\n".join(rows) + "\n")
    return CsvTable(str(tmp_path), "labels.csv", label_column="label", split_column="fold", group_columns=["patient", "site"])


def test_a_patient_in_two_splits_is_refused_where_patients_must_be_whole(visits):
    train, test = SplitSpec("train"), SplitSpec("test")
    val = SplitSpec("train", fraction=0.3, group="patient")
    splits = load_splits(visits, train, val, test)
    with pytest.raises(DataError) as caught:
        refuse_leaks(splits.leaks, allow=False)
    message = str(caught.value)
    assert "group 'patient': 1 images of 'test' are of a patient with images in '" in message
    assert message.endswith(
        "the result would not be on unseen patients; give each patient to one split, cut the test split from the training split "
        "with --set 'data.test={fraction: 0.2, group: patient}', or set data.allow_overlap: true, which writes the number into "
        "every report"
    )
    refuse_leaks(splits.leaks, allow=True)
    assert list(splits.admitted.values()) == [1]
    assert list(splits.admitted)[0] in ("train/test (patient)", "val/test (patient)")


def test_groups_that_nobody_named_are_counted(visits):
    splits = load_splits(visits, SplitSpec("train"), None, SplitSpec("test"))
    assert splits.admitted == {}
    assert {leak.key: leak.images for leak in splits.leaks} == {"train/test (patient)": 1, "train/test (site)": 3}
    refuse_leaks(splits.leaks, allow=False)


def test_patients_stay_whole_in_a_test_split_that_is_cut(tmp_path, visits):
    whole = CsvTable(str(tmp_path), {"train": "labels.csv"}, label_column="label", group_columns=["patient"])
    val, test = SplitSpec("train", fraction=0.2, group="patient"), SplitSpec("train", fraction=0.25, group="patient")
    splits = load_splits(whole, SplitSpec("train"), val, test)
    owners = [set(split.groups["patient"]) for split in splits.named().values()]
    assert sum(map(len, owners)) == 8 == len(set.union(*owners))
    with pytest.raises(DataError) as caught:
        load_splits(whole, SplitSpec("train"), None, SplitSpec("train", fraction=0.25, group="lesion"))
    assert str(caught.value) == "data.test.group 'lesion': split 'train' has no such group; it has: patient"


def test_files_that_are_not_read_are_counted_by_suffix(pets):
    for name in ("cat/scan.heic", "cat/.hidden.heic", "dog/b.HEIC", "dog/moving.gif", "dog/notes.txt"):
        (pets / name).write_bytes(b"x")
    assert ImageFolder(str(pets)).load("all").ignored == {".heic": 2, ".gif": 1, ".txt": 1}
    assert image_split([pets / "dog"], InputSection()).ignored == {".heic": 1, ".gif": 1, ".txt": 1}
    (pets / "only").mkdir()
    (pets / "only" / "a.heic").write_bytes(b"x")
    with pytest.raises(DataError) as caught:
        image_split([pets / "only"], InputSection())
    assert str(caught.value).endswith("; there are 1 .heic")


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("data.train={fraction: 0.5}", "data.train.fraction: only data.val and data.test can be parts of another split"),
        ("data.test={folds: 3}", "data.test.folds: only data.val can be one of several folds; use a fraction"),
        ("data.test={from: test, fraction: 0.5}", "data.test.from: must be the training split 'train', got 'test'"),
        ("retention=[{format: digits, test: null}]", "retention.0.test: a set that is only looked at has nothing to cut"),
        ("retention=[{format: digits, test: {fraction: 0.5}}]", "retention.0.test: a set that is only looked at has nothing to"),
    ],
)
def test_splits_that_cannot_be_cut(override, expected):
    with pytest.raises(UsageError) as caught:
        recipes.parse("model: {name: vit_tiny_patch16_224}\ndata: {format: digits}\n", "r.yaml", [override])
    assert str(caught.value).startswith(f"--set {override}: {expected}")


@pytest.mark.parametrize("test", ["null", "{fraction: 0.2, seed: 4}", "test"])
def test_a_resolved_recipe_says_the_same(test):
    text = f"model: {{name: vit_tiny_patch16_224}}\ndata: {{format: digits, val: {{fraction: 0.1}}, test: {test}}}\n"
    recipe = recipes.parse(text, "r.yaml", [])
    assert recipes.parse(recipes.dump(recipe.resolved), "r.yaml", []).data == recipe.data


@pytest.mark.parametrize("test", [SplitSpec("train", fraction=0.25), None])
def test_a_knn_needs_one_label_per_image_of_a_cut_split_too(tmp_path, test):
    rows = ["image,a,b"]
    for i in range(8):
        noise(tmp_path / f"x{i}.png", i)
        rows.append(f"x{i}.png,{i % 2},1")
    (tmp_path / "m.csv").write_text("\n".join(rows) + "\n")
    source = CsvTable(str(tmp_path), {"train": "m.csv"}, label_columns=["a", "b"], task="multilabel")
    data = DataSection("csv_table", source, SplitSpec("train"), SplitSpec("train", fraction=0.25), test)
    with pytest.raises(DataError, match="kNN needs one label per image, and this data is multilabel"):
        query_and_bank(data)
