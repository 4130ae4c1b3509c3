"""`rift init`: what is found in the folders and tables that people have, and that its recipe trains to a page."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from riftcli import recipe as recipes
from riftcli.data.discover import discover
from riftcli.data.splits import load_splits
from riftcli.errors import DataError
from riftcli.recipe.draft import Size, draft, methods


def picture(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(path)
    return path


def table(path: Path, header: list[str], rows: list[list], delimiter: str = ",") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerow(header)
        writer.writerows(rows)
    return path


def loaded(found):
    objective = {"name": "bce" if found.fields.get("task") == "multilabel" else "cross_entropy"}
    section = {"format": found.format, **found.fields, **found.splits}
    text = recipes.dump({"model": {"name": "x"}, "objective": objective, "data": section})
    data = recipes.parse(text, "r.yaml", []).data
    return load_splits(data.source, data.train, data.val, data.test, data.rules)


# ---- folders


@pytest.mark.parametrize("archive", [False, True])
def test_class_folders_with_and_without_splits(tmp_path, archive):
    root = tmp_path / "unpacked" / "pets" if archive else tmp_path / "pets"
    for i in range(30):
        picture(root / "ab"[i % 2] / f"{i}.png", i)
    (root / "a" / "b.gif").write_bytes(b"x")
    found = discover(tmp_path / "unpacked" if archive else root)
    assert (found.format, found.fields) == ("image_folder", {"root": str(root)})
    assert found.splits == {
        "train": "all", "val": {"fraction": 0.1, "from": "all"}, "test": {"fraction": 0.2, "from": "all"},
    }  # fmt: skip
    assert found.facts == [f"class folders in {root}, without splits", "not read: 1 .gif", "files: 30 .png"]
    assert [len(split) for split in loaded(found).named().values()] == [22, 2, 6]
    whole = tmp_path / "split"
    whole.mkdir()
    root.rename(whole / "Training")
    picture(whole / "valid" / "a" / "v.png")
    picture(whole / "valid" / "b" / "v.png")
    found = discover(whole)
    assert found.splits == {"train": "Training", "val": "valid", "test": {"fraction": 0.2, "from": "Training"}}
    assert [len(split) for split in loaded(found).named().values()] == [24, 2, 6]


def test_tiles_of_a_slide_stay_together(tmp_path):
    for slide in range(20):
        for tile in range(3):
            picture(tmp_path / "tiles" / "ab"[slide % 2] / f"S{slide}_{tile}_7.png", 10 * slide + tile)
    found = discover(tmp_path / "tiles")
    assert found.fields["group_by"] == "name"
    assert found.splits["test"] == {"fraction": 0.2, "from": "all", "group": "name"}
    owners = [set(split.groups["name"]) for split in loaded(found).named().values()]
    assert sum(map(len, owners)) == 20
    for slide in range(20):
        picture(tmp_path / "nested" / "ab"[slide % 2] / f"slide{slide}" / "1.png", slide)
        picture(tmp_path / "nested" / "ab"[slide % 2] / f"slide{slide}" / "2.png", slide + 50)
    assert discover(tmp_path / "nested").fields["group_by"] == "folder"


def test_names_that_begin_with_their_class_are_no_groups(tmp_path):
    for breed in range(12):
        for i in range(4):
            picture(tmp_path / f"n{breed}" / f"breed_{breed}_x_{i}.png", 10 * breed + i)
    assert "group_by" not in discover(tmp_path).fields


def test_folds_are_not_taken_for_classes_and_an_empty_class_is_named(tmp_path):
    for i in range(12):
        picture(tmp_path / "folds" / f"fold{i % 2}" / "ab"[i // 2 % 2] / f"{i}.png", i)
    with pytest.raises(DataError, match="all hold the same ones \\(a, b\\): they look like splits or folds, not like classes"):
        discover(tmp_path / "folds")
    for i in range(6):
        picture(tmp_path / "pets" / "ab"[i % 2] / f"{i}.png", i)
    (tmp_path / "pets" / "c").mkdir()
    with pytest.raises(DataError, match="c: class folder without images"):
        loaded(discover(tmp_path / "pets"))


def test_a_published_layout_is_known(tmp_path):
    from dataset_copies import isic

    isic(tmp_path / "isic")
    found = discover(tmp_path / "isic")
    assert found.format == "isic2018"
    assert found.facts[0] == "laid out as isic2018"
    assert loaded(found).train.classes[0] == "MEL"


# ---- tables


def test_a_table_with_patients_ids_without_suffix_and_another_delimiter(tmp_path):
    rows = []
    for i in range(60):
        picture(tmp_path / "study" / "jpegs" / f"ISIC_{i:03d}.JPG", i)
        rows.append(
            [f"ISIC_{i:03d}", f"P{i // 3}", f"L{i // 2}", 30.5 + i, "mf"[i % 2], ["nv", "mel", "bcc"][i % 3], f"note {i}"]
        )
    table(tmp_path / "study" / "meta.csv", ["isic_id", "patient_id", "lesion_id", "age", "sex", "dx", "note"], rows, ";")
    found = discover(tmp_path / "study")
    assert found.format == "csv_table"
    assert found.fields == {
        "root": str(tmp_path / "study"),
        "image_column": "isic_id",
        "images": ["jpegs"],
        "image_suffix": ".JPG",
        "label_column": "dx",
        "classes": ["bcc", "mel", "nv"],
        "labels": {"all": "meta.csv"},
        "delimiter": ";",
        "group_columns": ["patient_id", "lesion_id"],
    }
    assert found.splits["val"] == {"fraction": 0.1, "from": "all", "group": "patient_id"}
    assert [(q.key, q.chosen, q.others) for q in found.questions] == [("label_column", "dx", ("sex",))]
    assert discover(tmp_path / "study" / "meta.csv", {"label_column": "sex"}).fields["classes"] == ["f", "m"]
    splits = loaded(found)
    assert sum(len(set(split.groups["patient_id"])) for split in splits.named().values()) == 20


def test_a_split_column_and_paths_below_the_root(tmp_path):
    rows = []
    for i in range(30):
        fold = ["Train", "Train", "Valid", "Test", "Train"][i % 5]
        picture(tmp_path / "img" / f"{i}.png", i)
        rows.append([f"img/{i}.png", i % 2, fold])
    table(tmp_path / "all.csv", ["file", "target", "partition"], rows)
    found = discover(tmp_path / "all.csv")
    assert found.fields == {
        "root": str(tmp_path), "image_column": "file", "label_column": "target", "classes": ["0", "1"],
        "labels": "all.csv", "split_column": "partition",
    }  # fmt: skip
    assert found.splits == {"train": "Train", "val": "Valid", "test": "Test"}
    assert [len(split) for split in loaded(found).named().values()] == [18, 6, 6]


def test_many_flags_are_labels_and_one_hot_is_told_apart(tmp_path):
    for i in range(20):
        picture(tmp_path / f"{i}.png", i)
    several = [[f"{i}.png", i % 2, (i // 2) % 2, 1 - i % 3 // 2] for i in range(20)]
    found = discover(table(tmp_path / "m.csv", ["image", "edema", "mass", "nodule"], several))
    assert found.fields["label_columns"] == ["edema", "mass", "nodule"]
    assert (found.fields["task"], loaded(found).train.task) == ("multilabel", "multilabel")
    one = [[f"{i}.png", int(i % 3 == 0), int(i % 3 == 1), int(i % 3 == 2)] for i in range(20)]
    found = discover(table(tmp_path / "o.csv", ["image", "a", "b", "c"], one))
    assert "task" not in found.fields
    assert loaded(found).train.classes == ["a", "b", "c"]


def test_labels_that_are_joined(tmp_path):
    names = ["Mass", "Mass|Edema", "No Finding", "Edema"]
    for i in range(24):
        picture(tmp_path / f"{i}.png", i)
    found = discover(
        table(tmp_path / "t.csv", ["Image Index", "Finding Labels"], [[f"{i}.png", names[i % 4]] for i in range(24)])
    )
    assert found.fields["label_separator"] == "|"
    assert found.fields["classes"] == ["Edema", "Mass", "No Finding"]
    assert loaded(found).train.task == "multilabel"


def test_a_competition_whose_test_table_has_no_labels(tmp_path):
    for i in range(20):
        picture(tmp_path / ("train_images" if i < 16 else "test_images") / f"{i}.png", i)
    table(tmp_path / "train.csv", ["id_code", "diagnosis"], [[i, "abcd"[i % 4]] for i in range(16)])
    table(tmp_path / "test.csv", ["id_code"], [[i] for i in range(16, 20)])
    table(tmp_path / "sample_submission.csv", ["id_code", "diagnosis"], [[i, "a"] for i in range(16, 20)])
    found = discover(tmp_path)
    assert found.fields["labels"] == {"train": "train.csv"}
    assert found.fields["images"] == ["train_images"]
    assert found.splits["test"] == {"fraction": 0.2, "from": "train"}
    assert len(loaded(found).test) == 3


def test_absolute_paths(tmp_path):
    rows = [[str(picture(tmp_path / "far" / f"{i}.png", i)), "ab"[i % 2]] for i in range(20)]
    found = discover(table(tmp_path / "near" / "t.csv", ["path", "label"], rows))
    assert (found.fields["images"], found.fields["image_column"]) == ("absolute", "path")
    assert len(loaded(found).train) == 14


def test_columns_that_speak_of_a_patient_are_no_groups_and_one_with_gaps_is_said(tmp_path):
    rows = [[picture(tmp_path / f"{i}.png", i).name, 20 + i % 40, f"P{i // 3}" if i else "", "ab"[i % 2]] for i in range(60)]
    found = discover(table(tmp_path / "t.csv", ["image", "Patient Age", "Patient ID", "Finding Label"], rows))
    assert "group_columns" not in found.fields
    assert found.fields["label_column"] == "Finding Label"
    assert "Patient ID is empty in 1 rows, so images are not kept together by it: fill it, and set group_columns" in found.facts
    answered = discover(tmp_path / "t.csv", {"label_column": "Patient ID"}).fields  # whoever is named is the label
    assert (answered["label_column"], answered["classes"][0]) == ("Patient ID", "P0")


def test_paths_that_begin_with_the_folder_of_the_table(tmp_path):
    root = tmp_path / "CheXpert-small"
    rows = []
    for i in range(20):
        picture(root / "train" / f"p{i // 2}" / f"v{i % 2}.png", i)
        rows.append([f"CheXpert-small/train/p{i // 2}/v{i % 2}.png", i % 2, (i // 2) % 2])
    table(root / "train.csv", ["Path", "Edema", "Mass"], rows)
    found = discover(root)
    assert (found.fields["root"], found.fields["labels"]) == (str(tmp_path), {"all": "CheXpert-small/train.csv"})
    assert len(loaded(found).train) == 14
    root.rename(tmp_path / "renamed")
    with pytest.raises(DataError) as caught:
        discover(tmp_path / "renamed" / "train.csv")
    assert "paths in column 'Path' begin with CheXpert-small/; call the folder CheXpert-small, not renamed" in str(caught.value)


def test_what_is_wrong_with_a_table_is_not_hidden_by_folders_of_images(tmp_path):
    rows = [[picture(tmp_path / "ab"[i % 2] / f"{i}.png", i).name, 1.5 * i] for i in range(10)]
    table(tmp_path / "t.csv", ["image", "age"], rows)
    with pytest.raises(DataError, match="no column looks like a label"):
        discover(tmp_path)
    table(tmp_path / "t.csv", ["site", "price"], [["x", 1.5], ["y", 2.5]])
    found = discover(tmp_path)
    assert found.format == "image_folder"
    assert found.facts[1] == "tables beside the class folders are not read: t.csv"


def test_images_of_all_tables_and_rows_are_found_and_masks_are_none(tmp_path):
    for part, count in (("train", 900), ("test", 12)):
        for i in range(count):
            place = "late" if i == 1 and part == "train" else part  # one row of many, between those that are sampled
            (tmp_path / place).mkdir(exist_ok=True)
            (tmp_path / place / f"{part}{i}.jpg").write_bytes(b"x")
    (tmp_path / "masks").mkdir()
    for i in range(900):
        (tmp_path / "masks" / f"train{i}.png").write_bytes(b"x")
    for part, count in (("train", 900), ("test", 12)):
        table(tmp_path / f"{part}.csv", ["id", "label"], [[f"{part}{i}", "ab"[i % 2]] for i in range(count)])
    found = discover(tmp_path)
    assert found.fields["images"] == ["train", "late", "test"]
    assert found.fields["image_suffix"] == ".jpg"
    assert found.splits["test"] == "test"


def test_images_behind_a_link_in_an_archive_within_an_archive(tmp_path):
    far = tmp_path / "far"
    rows = [[picture(far / f"{i}.png", i).stem, "ab"[i % 2]] for i in range(20)]
    inner = tmp_path / "download" / "set" / "v1"
    inner.mkdir(parents=True)
    (inner / "images").symlink_to(far)
    (far / "back").symlink_to(far)
    table(inner / "labels.csv", ["id", "label"], rows)
    found = discover(tmp_path / "download")
    assert (found.fields["root"], found.fields["images"]) == (str(inner), ["images"])
    assert len(loaded(found).train) == 14


def test_labels_get_the_images_of_their_own_split(tmp_path):
    rows = [[str(i), "ab"[i % 2]] for i in range(20)]
    for i in range(30):
        picture(tmp_path / "test" / f"{i}.png", i)  # a competition's: the same names, other pictures, and more of them
        if i < 20:
            picture(tmp_path / "train" / f"{i}.png", 100 + i)
    table(tmp_path / "train.csv", ["id", "label"], rows)
    found = discover(tmp_path)
    assert found.fields["images"] == ["train"]
    assert "images are taken from train; 20 also in test" in found.facts
    table(tmp_path / "test.csv", ["id", "label"], rows)
    with pytest.raises(DataError, match="have images with the same names in train, test; write their paths"):
        discover(tmp_path)


def test_the_number_of_a_row_is_no_image(tmp_path):
    rows = [[i, 19 - i, "ab"[i % 2]] for i in range(20)]
    for i in range(20):
        picture(tmp_path / f"{i}.png", i)
    for header in (["", "id", "label"], ["Unnamed: 0", "image_id", "label"], ["row", "id", "label"]):
        assert discover(table(tmp_path / "t.csv", header, rows)).fields["image_column"] == header[1]


@pytest.mark.parametrize(
    ("header", "values", "label"),
    [
        (["label", "sex"], lambda i: [i % 2, (i // 2) % 2], "label"),
        (["sex", "target"], lambda i: ["mf"[i % 2], (i // 2) % 2], "target"),
        (["y", "place", "split"], lambda i: [i % 2, (i // 2) % 2, i % 3], "y"),
        (["lesion", "sex", "dx"], lambda i: [["nv", "mel", "bcc", "akiec", "bkl"][i % 5], "mf"[i % 2], "ab"[i % 2]], "dx"),
        (["label", "sex"], lambda i: ["ab"[i % 2] if i else "", "mf"[i % 2]], "label"),
    ],
)
def test_the_column_that_is_called_label_is_the_label(tmp_path, header, values, label):
    rows = [[picture(tmp_path / f"{i}.png", i).name, *values(i)] for i in range(30)]
    found = discover(table(tmp_path / "t.csv", ["image", *header], rows))
    assert found.fields["label_column"] == label
    assert "group_columns" not in found.fields
    if "split" in header:
        assert any("column split is not used" in fact for fact in found.facts)
    if rows[0][1] == "":
        with pytest.raises(DataError, match="column 'label' is empty"):
            loaded(found)


def test_words_for_one_split_are_joined_and_what_is_left_out_is_said(tmp_path):
    words = ["train", "Train", "valid", "validation", "test", ""]
    rows = [[picture(tmp_path / f"{i}.png", i).name, "ab"[i // 6 % 2], words[i % 6]] for i in range(60)]
    found = discover(table(tmp_path / "t.csv", ["image", "label", "split"], rows))
    assert found.splits == {"train": "train+Train", "val": "valid+validation", "test": "test"}
    assert "10 rows without a split are in no split" in found.facts
    assert [len(split) for split in loaded(found).named().values()] == [20, 20, 10]
    for i in range(8):
        picture(tmp_path / "folders" / ["train", "dev", "Validation", "test"][i // 2] / "ab"[i % 2] / f"{i}.png", i)
    found = discover(tmp_path / "folders")
    assert found.splits["val"] == "Validation+dev"
    assert len(loaded(found).val) == 4


def test_a_test_table_that_lacks_a_column_is_said(tmp_path):
    for part, header in (("train", ["image", "label", "patient_id"]), ("test", ["image", "label"])):
        rows = [[picture(tmp_path / f"{part}{i}.png", i).name, "ab"[i % 2], f"p{i // 2}"][: len(header)] for i in range(20)]
        table(tmp_path / f"{part}.csv", header, rows)
    found = discover(tmp_path)
    assert found.fields["labels"] == {"train": "train.csv", "test": "test.csv"}
    assert "not kept whole by patient_id: not every table has it" in found.facts
    table(tmp_path / "test.csv", ["image"], [[f"test{i}.png"] for i in range(20)])
    assert "test.csv is not read: it has no column label" in discover(tmp_path).facts


def test_what_groups_by_folder_and_what_does_not(tmp_path):
    for i in range(24):
        picture(tmp_path / "patients" / "ab"[i % 2] / f"{'ab'[i % 2]}_p{i // 2 % 3}" / f"{i}.png", i)
        picture(tmp_path / "zoom" / "ab"[i % 2] / ["40X", "100X", "200X"][i // 2 % 3] / f"{i}.png", i)
        picture(tmp_path / "two" / "ab"[i % 2] / f"{'ab'[i % 2]}_p{i // 2 % 2}" / f"{i}.png", i)
    assert discover(tmp_path / "patients").fields["group_by"] == "folder"
    assert "group_by" not in discover(tmp_path / "zoom").fields
    found = discover(tmp_path / "two")
    assert "group_by" not in found.fields
    assert any("are not kept whole, for a class has only one or two" in fact for fact in found.facts)
    (tmp_path / "linked" / "a").mkdir(parents=True)
    (tmp_path / "linked" / "b").symlink_to(tmp_path / "patients" / "b")
    (tmp_path / "linked" / "a" / "more").symlink_to(tmp_path / "patients" / "a")
    assert sum(map(len, loaded(discover(tmp_path / "linked")).named().values())) == 24  # behind whichever link


def test_folders_that_are_no_classes_and_tables_that_are_no_labels(tmp_path):
    for i in range(8):
        picture(tmp_path / "seg" / ["images", "masks"][i % 2] / f"{i}.png", i)
        picture(tmp_path / "set" / "train" / "ab"[i % 2] / f"{i}.png", i)
        picture(tmp_path / "set" / "test" / f"{i}.png", i)
        picture(tmp_path / "classes" / "ab"[i % 2] / f"{i}.png", i)
    with pytest.raises(DataError, match="nothing that says what they show; a table with labels is missing"):
        discover(tmp_path / "seg")
    table(tmp_path / "set" / "test_labels.csv", ["image", "label"], [[f"{i}.png", "ab"[i % 2]] for i in range(8)])
    assert discover(tmp_path / "set").splits["train"] == "train"
    (tmp_path / "classes" / "notes.csv").write_bytes("größe".encode("latin-1"))
    (tmp_path / "classes" / "empty.csv").touch()
    assert discover(tmp_path / "classes").format == "image_folder"


def test_a_label_column_comes_before_columns_of_0_and_1(tmp_path):
    rows = [[picture(tmp_path / f"{i}.png", i).name, i % 2, (i // 2) % 2, "", ["nv", "mel", "bcc"][i % 3]] for i in range(30)]
    found = discover(table(tmp_path / "t.csv", ["image", "smoker", "male", "note", "dx"], rows))
    assert found.fields["label_column"] == "dx"
    assert "not taken for labels: 2 columns of 0 and 1 (smoker, male)" in found.facts
    assert found.facts[1] == "could also be the label: smoker, male (rift init --label COLUMN)"
    long = [["x" * 5000, "a"], ["y" * 5000, "b"]] * 5
    with pytest.raises(DataError, match="no column names images"):
        discover(table(tmp_path / "long.csv", ["text", "label"], long))


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda p: p / "nowhere", "{p}/nowhere: no such file or folder"),
        (lambda p: p, "{p}: no images, no class folders, no table (CSV) in it; which folder holds the data?"),
        (lambda p: picture(p / "x.png") and p, "{p}: 1 images and nothing that says what they show; put them into one"),
        (lambda p: table(p / "t.csv", ["a", "b"], [["x", 1], ["y", 2]]),
         "{p}/t.csv: no column names images below {p} (looked for .jpg, .jpeg, .png, ...); its first row is a=x, b=1; "),
        (lambda p: table(p / "t.csv", ["a"], []), "{p}/t.csv: no rows below the header"),
        (lambda p: picture(p / "d" / "test" / "a" / "x.png") and picture(p / "d" / "val" / "a" / "x.png") and p / "d",
         "{p}/d: split folders (test, val), none to train on; expected {p}/d/train/<class>/<image>"),
    ],
)  # fmt: skip
def test_what_is_not_known_is_said(tmp_path, make, expected):
    with pytest.raises(DataError) as caught:
        discover(make(tmp_path))
    assert str(caught.value).startswith(expected.format(p=tmp_path))


def test_a_table_without_a_label(tmp_path):
    rows = [[picture(tmp_path / f"{i}.png", i).name, 1.5 * i] for i in range(10)]
    with pytest.raises(DataError) as caught:
        discover(table(tmp_path / "t.csv", ["image", "age"], rows))
    assert "no column looks like a label" in str(caught.value)
    with pytest.raises(DataError) as caught:
        discover(tmp_path / "t.csv", {"label_column": "lable"})
    assert str(caught.value).endswith("t.csv: no column 'lable'; it has: image, age")


# ---- the recipe


@pytest.mark.parametrize("method", methods())
@pytest.mark.parametrize("gpu", [False, True])
def test_every_method_makes_a_valid_recipe(method, gpu):
    data = {"format": "image_folder", "root": "x y", "train": "all", "val": {"fraction": 0.1, "from": "all"}, "test": None}
    text = draft("pets", "pets: a title", ["a fact"], data, Size(500, 2, 5.0, False, gpu), "vit_tiny_patch16_224", method)
    checked = recipes.parse(text, "pets.yaml", [])
    assert text.startswith("# pets: a title\n# a fact\n")
    assert checked.eval.best == "bacc"
    assert checked.train.batch_size == 16
    assert checked.train.epochs <= (50 if gpu else 10)
    assert checked.data.source.root == "x y"


@pytest.mark.parametrize(("images", "batch"), [(3, 2), (20, 8), (100, 16), (1000, 32), (2500, 64), (100_000, 128)])
def test_settings_fit_the_size_of_the_data(images, batch):
    data = {"format": "digits"}
    text = draft("d", "d", [], data, Size(images, 2, 1.0, True, True), "vit_tiny_patch16_224", "full")
    train = recipes.parse(text.replace("name: bce", "name: cross_entropy"), "d.yaml", []).train
    assert train.batch_size == batch
    steps = images // batch * train.epochs
    assert train.epochs in (5, 50) or 1900 <= steps <= 2300


# ---- from nothing to a page


def dicom_folder(root: Path) -> Path:
    from test_dicom import scan

    rng = np.random.default_rng(0)
    for i in range(60):
        scan(root / "ab"[i % 2] / f"{i}.dcm", rng.integers(0, 4000, (16, 16)).astype("uint16"), PatientID=f"p{i // 3}")
    return root


def csv_with_patients(root: Path) -> Path:
    rows = [[picture(root / "images" / f"{i}.png", i).stem, f"P{i // 3}", ["mel", "nv"][i % 2]] for i in range(60)]
    return table(root / "labels.csv", ["image_id", "patient", "dx"], rows)


def class_folders(root: Path) -> Path:
    for i in range(60):
        picture(root / ["cat", "dog"][i % 2] / f"{i}.png", i)
    return root


@pytest.mark.page
@pytest.mark.parametrize("make", [class_folders, csv_with_patients, dicom_folder])
def test_from_nothing_to_a_page_with_one_edit(rift, tiny_weights, tmp_path, make):
    if make is dicom_folder:
        pytest.importorskip("pydicom")
    data = make(tmp_path / "mine")
    code, _, err = rift("init", data, "--model", f"local-dir:{tiny_weights}", "--yes", "--out", "mine.yaml")
    assert code == 0, err
    lines = err.strip().splitlines()
    assert lines[-1] == "next: rift finetune --recipe mine.yaml"
    assert len(lines) <= 7
    assert any(line.startswith("images: ") and "val and test cut from the training images" in line for line in lines)
    text = Path("mine.yaml").read_text()
    Path("mine.yaml").write_text(text.replace("epochs: 10", "epochs: 1"))  # the one edit
    code, _, err = rift("finetune", "--recipe", "mine.yaml", "--out", "run")
    assert code == 0, err
    assert Path("run/report.html").stat().st_size > 10_000
    code, _, err = rift("init", data, "--out", "mine.yaml")
    assert (code, err) == (2, "error: mine.yaml: exists; choose another --out or remove it\n")


def test_data_that_is_not_in_order_is_said_after_the_recipe_is_written(rift, tmp_path):
    path = csv_with_patients(tmp_path / "mine")
    path.write_text(path.read_text() + "gone,P0,mel\n")
    code, _, err = rift("init", path, "--yes", "--out", "mine.yaml")
    assert code == 3
    assert "recipe: mine.yaml (full + rift on vit_small_patch14_dinov2.lvd142m)" in err
    assert "error: " in err.splitlines()[-1] and "image 'gone.png' not found" in err
    assert Path("mine.yaml").is_file()
    code, _, err = rift("init", path, "--method", "lorra", "--out", "b.yaml")
    assert (code, err.startswith("error: --method lorra: unknown (did you mean 'lora'?); one of: full, rift, rsc, linear, ")) == (
        2,
        True,
    )


def test_one_example_per_format_is_valid():
    from riftcli import catalog

    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
    lines = [line for line in page.splitlines() if line.startswith("data: {format: ")]
    named = set()
    for line in lines:
        task = "bce" if "multilabel" in line else "cross_entropy"
        recipe = recipes.parse(f"model: {{name: x}}\nobjective: {{name: {task}}}\n{line}\n", "example.yaml", [])
        named.add(recipe.data.format)
    beside = [line for line in page.splitlines() if line.startswith("eval: {shifted: ")]
    recipe = recipes.parse(f"model: {{name: x}}\ndata: {{format: digits}}\n{beside[0]}\n", "example.yaml", [])
    named.add(recipe.shifted[0].format)
    assert named == set(catalog.names("data")) - {"captions", "demo_fashion"}, "those two are not trained on"


def test_a_person_is_asked_where_several_columns_could_be_the_label(rift, tmp_path, monkeypatch):
    rows = [[picture(tmp_path / "t" / f"{i}.png", i).name, "ab"[i % 2], "xyz"[i % 3]] for i in range(30)]
    table(tmp_path / "t" / "t.csv", ["image", "label", "species"], rows)

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr("sys.stdin", Terminal("7\n2\n"))
    code, _, err = rift("init", tmp_path / "t", "--out", "asked.yaml")
    assert code == 0, err
    assert "  1  label\n  2  species\n" in err
    assert "label_column species" in err
    code, _, err = rift("init", tmp_path / "t", "--label", "label", "--out", "told.yaml")
    assert "label_column label" in err


def test_uncertain_labels_are_seen_and_the_reading_is_said(tmp_path):
    cells = ["1", "0", "-1", "", "1.0"]
    rows = [[picture(tmp_path / f"{i}.png", i).name, cells[i % 5], cells[(i + 2) % 5], f"p{i // 2}"] for i in range(30)]
    path = table(tmp_path / "c.csv", ["Path", "Edema", "Pneumonia", "patient"], rows)
    found = discover(path)
    assert found.fields["uncertain"] == "zero"
    assert any("cells of -1 (uncertain) are taken as 0" in fact for fact in found.facts)
    assert loaded(found).train.targets.shape[1] == 2
    fields = {**found.fields, "labels": {"train": "c.csv"}}
    from riftcli.data.datasets.csv_table import CsvTable

    zero, one = (CsvTable(**{**fields, "uncertain": how}).load("train").targets for how in ("zero", "one"))
    uncertain = np.array([[cells[i % 5] == "-1", cells[(i + 2) % 5] == "-1"] for i in range(30)])
    assert (one[uncertain] == 1).all() and (zero[uncertain] == 0).all()
    assert (one[~uncertain] == zero[~uncertain]).all()
    with pytest.raises(DataError) as caught:
        CsvTable(**{**fields, "uncertain": "error"}).load("train")
    assert "c.csv:2: column 'Pneumonia' is -1, uncertain; say what that is to be with data.uncertain: zero, one or ignore" in str(
        caught.value
    )
