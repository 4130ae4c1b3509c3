"""Every on-disk format: read as users download it, and a broken copy refused with file, line, id and remedy."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from dataset_copies import (
    CHEST_NAMES,
    COLON_NAMES,
    ENDO_NAMES,
    NAMES,
    PUBLISHED,
    WNIDS,
    aptos_mirror,
    aptos_official,
    cars,
    cc3m,
    cub,
    flickr,
    imagenet,
    imagenet_devkit,
    isic,
    medfm_arranged,
    medfm_csv,
    medfm_downloaded,
    medfm_labels,
    pets,
    picture,
    write,
)

from riftcli.data.classes import class_counts
from riftcli.data.datasets.aptos2019 import Aptos2019
from riftcli.data.datasets.captions import Captions
from riftcli.data.datasets.cub200 import Cub200
from riftcli.data.datasets.imagenet import ImageNet
from riftcli.data.datasets.isic2018 import Isic2018
from riftcli.data.datasets.medfm import CHEST, MedFm
from riftcli.data.datasets.torchvision import Torchvision
from riftcli.data.splits import load_splits
from riftcli.errors import DataError
from riftcli.recipe.data_sources import SplitRules, SplitSpec

TASKS = ["chest", "colon", "endo"]


def refused(call, *arguments) -> str:
    with pytest.raises(DataError) as caught:
        call(*arguments)
    return str(caught.value)


# ---- ISIC 2018


def truth(root: Path, part: str = "Training") -> Path:
    return root / f"ISIC2018_Task3_{part}_GroundTruth" / f"ISIC2018_Task3_{part}_GroundTruth.csv"


def test_isic(tmp_path):
    source = Isic2018(str(isic(tmp_path)))
    train = source.load("train")
    assert train.classes == ["MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC"]
    assert train.targets.tolist() == list(range(7))
    assert train.ids[0] == "ISIC_0024306"
    assert train.read(0).size == (12, 10)
    assert train.groups == {"lesion": ["HAM_0000000"] * 2 + ["HAM_0000001"] * 2 + ["HAM_0000002"] * 2 + ["HAM_0000003"]}
    assert len(source.load("test")) == len(source.load("val")) == 7


def test_isic_as_people_have_it(tmp_path):
    """Doubled folders, columns in another order, `.jpg` in the ids, a byte order mark, a csv beside the folders."""
    isic(tmp_path)
    folder = tmp_path / "ISIC2018_Task3_Training_Input"
    shutil.move(folder, tmp_path / "inner")
    folder.mkdir()
    shutil.move(tmp_path / "inner", folder / folder.name)
    lines = truth(tmp_path).read_text().splitlines()
    swapped = [",".join([cells[0], *reversed(cells[1:])]) for cells in (line.split(",") for line in lines)]
    swapped = [swapped[0], *(line.replace(",", ".jpg,", 1) for line in swapped[1:])]
    shutil.rmtree(truth(tmp_path).parent)
    write(tmp_path / "ISIC2018_Task3_Training_GroundTruth.csv", "\n".join(swapped), encoding="utf-8-sig")
    train = Isic2018(str(tmp_path)).load("train")
    assert train.targets.tolist() == list(range(7))
    assert train.ids[0] == "ISIC_0024306"
    own = Isic2018(
        str(tmp_path), labels={"train": "ISIC2018_Task3_Training_GroundTruth.csv"}, images=[f"{folder.name}/{folder.name}"]
    )
    assert own.load("train").ids == train.ids


def test_isic_broken(tmp_path):
    load = Isic2018(str(isic(tmp_path))).load
    path = truth(tmp_path)
    good = path.read_text()

    def error(text: str) -> str:
        path.write_text(text)
        return refused(load, "train")

    assert error(good.replace(",VASC", "")) == (f"{path}:1: no column 'VASC'; it has: image, MEL, NV, BCC, AKIEC, BKL, DF")
    assert error(good.replace("AKIEC,BKL", "AK,BKL")) == (
        f"{path}:1: columns AK are not classes of ISIC 2018 task 3 (this looks like ISIC 2019), which are MEL, NV, BCC, AKIEC, "
        "BKL, DF, VASC; use data.format csv_table with label_columns for another set"
    )
    assert error(good.replace("ISIC_0024307", "ISIC_24307")) == (
        f"{path}:3: id 'ISIC_24307' is not an ISIC id (ISIC_ and seven digits); is this the ground truth of task 3?"
    )
    assert error(good.replace("ISIC_0024307", "ISIC_9999999")) == (
        f"{path}:3: image 'ISIC_9999999.jpg' not found in {tmp_path}/ISIC2018_Task3_Training_Input"
    )
    assert error(good.replace("24308,0.0,0.0,1.0", "24308,0.0,1.0,1.0")) == (
        f"{path}:4: one-hot row with 2 ones; exactly one class must be 1"
    )
    assert error(good.replace("1.0", "0.0")) == "\n".join(
        [f"{path}:{i}: one-hot row with 0 ones; exactly one class must be 1" for i in range(2, 7)] + ["  and 2 more (7 in all)"]
    )
    assert error("image,MEL\n") == f"{path}:1: no column 'NV'; it has: image, MEL"
    path.write_text(good)
    lesions = tmp_path / "ISIC2018_Task3_Training_LesionGroupings.csv"
    lesions.write_text(lesions.read_text().replace("ISIC_0024312", "ISIC_0099999"))
    assert refused(load, "train") == (f"{lesions}: no lesion for id 'ISIC_0024312' of split 'train'; download the file again")
    lesions.unlink()
    held = SplitSpec("train", fraction=0.3, group="lesion")
    assert refused(load_splits, Isic2018(str(tmp_path)), SplitSpec("train"), held, SplitSpec("test")) == (
        f"data.val.group 'lesion': needs ISIC2018_Task3_Training_LesionGroupings.csv in {tmp_path}; download it from the "
        "challenge, or set data.val.group: null"
    )
    assert refused(load, "valid") == f"isic2018 {tmp_path}: no split 'valid' (did you mean 'val'?); it has: train, val, test"


def test_isic_other_tasks_handed_in(tmp_path):
    (tmp_path / "ISIC2018_Task1-2_Training_Input").mkdir()
    name = "ISIC2018_Task3_Training_GroundTruth"
    assert refused(Isic2018(str(tmp_path)).load, "train") == (
        f"{tmp_path}: no label file for split 'train'; tried {name}/{name}.csv, {name}/{name}/{name}.csv, {name}.csv; "
        "ISIC2018_Task1-2_Training_Input belongs to another task: this format reads task 3; unpack the zip of the same name "
        "here, or set data.labels"
    )


# ---- APTOS 2019


def test_aptos_mirror(tmp_path):
    source = Aptos2019(str(aptos_mirror(tmp_path)))
    train = source.load("train")
    assert train.classes == ["No DR", "Mild", "Moderate", "Severe", "Proliferative DR"]
    assert train.targets.tolist() == [0, 1, 2, 3, 4] * 2
    assert (len(source.load("val")), len(source.load("test"))) == (5, 5)
    # one folder level, a grade through a data frame, the other names
    shutil.move(tmp_path / "val_images" / "val_images", tmp_path / "v")
    (tmp_path / "val_images").rmdir()
    shutil.move(tmp_path / "v", tmp_path / "val_images")
    table = tmp_path / "valid.csv"
    write(tmp_path / "val.csv", table.read_text().replace(",2\n", ",2.0\n"))
    table.unlink()
    assert source.load("val").targets.tolist() == [0, 1, 2, 3, 4]


def test_aptos_official_download_is_cut_as_the_mirror_is(tmp_path):
    source = Aptos2019(str(aptos_official(tmp_path)))
    splits = {name: source.load(name) for name in ("train", "val", "test")}
    assert {name: len(split) for name, split in splits.items()} == {"train": 2930, "val": 366, "test": 366}
    order = splits["val"].ids + splits["train"].ids + splits["test"].ids
    assert order == sorted(order)
    table = tmp_path / "train.csv"
    lines = table.read_text().splitlines(keepends=True)
    table.write_text("".join(lines[:-1]))
    assert refused(source.load, "train") == (
        f"{table}: 3,661 rows; the contiguous rule cuts the competition's train.csv of 3,662 rows; give the splits as files "
        "with data.labels"
    )
    table.write_text("".join([lines[0], lines[2], lines[1], *lines[3:]]))
    assert refused(source.load, "train") == (
        f"{table}:3: id '000000000000' comes after '000000000001': the contiguous rule needs the competition's train.csv, sorted "
        "by id"
    )


def test_aptos_broken(tmp_path):
    load = Aptos2019(str(aptos_mirror(tmp_path))).load
    write(tmp_path / "test.csv", "id_code\n00000000000b\n")
    assert refused(load, "test") == (
        f"{tmp_path}/test.csv:1: no column 'diagnosis': this is the competition's test.csv, whose labels were never published; "
        "use the mirror's test.csv, or --set data.split_rule=contiguous with the competition's train.csv"
    )
    table = tmp_path / "train_1.csv"
    good = table.read_text()
    table.write_text(good.replace("000000000002,1", "000000000002,5"))
    assert refused(load, "train") == f"{table}:3: label 5 is out of range; expected 0..4"
    table.write_text(good.replace("000000000002,1", "000000000002,1.5"))
    assert refused(load, "train") == f"{table}:3: label 1.5 is out of range; expected 0..4"
    table.write_text(good.replace("000000000002,1", "1e5,1"))
    assert refused(load, "train") == f"{table}:3: image '1e5.png' not found in {tmp_path}/train_images/train_images"
    (tmp_path / "train_images" / "train_images" / "1E5.PNG").write_bytes(b"")
    assert refused(load, "train").endswith("train_images; there is 1E5.PNG")
    shutil.rmtree(tmp_path / "train_images")
    table.write_text(good)
    assert refused(load, "train") == (
        f"{tmp_path}: no image folder for split 'train'; tried train_images/train_images, train_images; unpack the images here, "
        "or set data.images"
    )
    table.unlink()
    assert refused(load, "train") == (
        f"{tmp_path}: no label file for split 'train'; tried train_1.csv, train.csv; expected the three CSV files of the mirror, "
        "or the competition's train.csv; or set data.labels"
    )


# ---- MedFM

MEMBERS = {  # which of the six images: 0, 1 trainval; 2, 3 open; 4, 5 hidden
    "official": ([0, 1], [2, 3, 4, 5]),
    "challenge": ([0, 1, 2, 3], [4, 5]),
    "paper": ([0, 1, 2, 3], [2, 3, 4, 5]),
}


@pytest.mark.parametrize("protocol", list(MEMBERS))
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("layout", [medfm_downloaded, medfm_arranged])
def test_medfm(tmp_path, layout, task, protocol):
    source = MedFm(str(layout(tmp_path, task)), task, protocol)
    for name, members in zip(("train", "test"), MEMBERS[protocol], strict=True):
        split = source.load(name)
        assert split.ids == [NAMES[task][i] for i in members]
        labels = [medfm_labels(task, i) for i in members]
        assert split.targets.tolist() == ([row[0] for row in labels] if task == "colon" else labels)
        assert split.read(len(members) - 1).size == (12, 10)
    assert split.task == ("multiclass" if task == "colon" else "multilabel")
    assert len(split.classes) == {"chest": 19, "colon": 2, "endo": 4}[task]


def test_medfm_names_rows_and_groups(tmp_path):
    chest = MedFm(str(medfm_downloaded(tmp_path, "chest")), "chest").load("train")
    assert chest.ids[1] == "DX.1.2.392.200036.9125.1.1.1.png", "dots belong to the name"
    assert chest.targets[0].sum() == 0, "no finding is legal"
    assert class_counts(chest)[CHEST[2]] == 1
    assert chest.groups == {}
    colon = MedFm(str(medfm_downloaded(tmp_path, "colon")), "colon", "challenge").load("train")
    assert " " in colon.ids[0]
    assert colon.groups["slide"] == ["2019-06-11 01_00_50"] * 2 + ["2019-06-11 01_00_51"] * 2
    endo = MedFm(str(medfm_downloaded(tmp_path, "endo")), "endo").load("test")
    assert endo.groups["study"][0] == "13333_2021.11_0001"


def test_medfm_papers_counts_leak_and_must_be_asked_for(tmp_path):
    source = MedFm(str(medfm_downloaded(tmp_path, "endo")), "endo", "paper")
    assert refused(load_splits, source, SplitSpec("train"), None, SplitSpec("test")) == (
        "splits 'train' and 'test' share 2 samples (e.g. 13333_2021.11_0001_54952.png): the result would not be on unseen data; "
        "take them out of one, or set data.allow_overlap: true, which writes the number into every report"
    )
    allowed = load_splits(source, SplitSpec("train"), None, SplitSpec("test"), SplitRules(allow_overlap=True))
    assert allowed.overlap == {"train/test": 2}
    for protocol in ("official", "challenge"):
        clean = load_splits(MedFm(str(tmp_path), "endo", protocol), SplitSpec("train"), None, SplitSpec("test"))
        assert clean.overlap == {}


def test_medfm_few_shot_lists_repeat_images(tmp_path):
    medfm_arranged(tmp_path, "chest")
    lists = {"train": "chest/chest_1-shot_train_exp1.txt"}
    path = tmp_path / lists["train"]
    assert refused(MedFm(str(tmp_path), "chest", lists=lists).load, "train") == (
        f"{path}:2: id '{CHEST_NAMES[1]}' is listed twice (first on line 1); remove one, or --set data.on_duplicate=first"
    )
    assert MedFm(str(tmp_path), "chest", lists=lists, on_duplicate="first").load("train").ids == [CHEST_NAMES[1]]
    kept = MedFm(str(tmp_path), "chest", lists=lists, on_duplicate="keep").load("train")
    assert kept.ids == [CHEST_NAMES[1], f"{CHEST_NAMES[1]}#2"]
    path.write_text(path.read_text().replace("0\n", "1\n", 1))
    assert refused(MedFm(str(tmp_path), "chest", lists=lists, on_duplicate="keep").load, "train") == (
        f"{path}:2: id '{CHEST_NAMES[1]}' is listed twice with different labels (first on line 1); keep the right line only"
    )


@pytest.mark.parametrize(
    ("task", "line", "expected"),
    [
        ("chest", f"{CHEST_NAMES[0]} 0 1 0 0", "expected an image name and 19 labels 0 or 1 joined by commas, got '0 1 0 0'; "
         "is this the list of another task?"),
        ("chest", f"{CHEST_NAMES[0]} 0,1", "expected an image name and 19 labels 0 or 1 joined by commas, got '0,1'; "
         "is this the list of another task?"),
        ("endo", f"{ENDO_NAMES[0]} 0,1,0,0", "expected an image name and 4 labels 0 or 1 joined by spaces, got '0,1,0,0'; "
         "is this the list of another task?"),
        ("colon", f"{COLON_NAMES[0]} 2", "expected an image name and one label 0 or 1, got '2'; "
         "is this the list of another task?"),
        ("colon", COLON_NAMES[0], f"'{COLON_NAMES[0]}' has no label: an unlabelled list (test_WithoutLabel?) cannot be scored"),
        ("colon", "nowhere.png 1", "image 'nowhere.png' not found in {root}/MedFMC_train/colon/images, "
         "{root}/MedFMC_val/colon/images"),
        ("colon", "../../x.png 1", "image '../../x.png' points outside the image folders"),
        ("colon", "/etc/x.png 1", "image '/etc/x.png' points outside the image folders"),
    ],
)  # fmt: skip
def test_medfm_broken_lists(tmp_path, task, line, expected):
    medfm_downloaded(tmp_path, task)
    path = write(tmp_path / "MedFMC_trainval_annotation" / task / "trainval.txt", line + "\n")
    assert refused(MedFm(str(tmp_path), task).load, "train") == f"{path}:1: {expected.format(root=tmp_path)}"


def test_medfm_unlabelled_tables(tmp_path):
    medfm_downloaded(tmp_path, "chest")
    lists = {"train": "MedFMC_val/chest/chest_val.csv"}
    path = tmp_path / lists["train"]
    assert refused(MedFm(str(tmp_path), "chest", lists=lists).load, "train") == "\n".join(
        f"{path}:{line}: column 'pleural_effusion' must be 0 or 1, got '' (an unlabelled split: its labels were published after "
        "the challenge)"
        for line in (2, 3)
    )
    shutil.rmtree(tmp_path / "MedFMC_trainval_annotation")
    assert refused(MedFm(str(tmp_path), "chest", "challenge").load, "test") == (
        f"{tmp_path}: no MedFMC_trainval_annotation/chest/trainval.txt; protocol 'challenge' needs the labels published after "
        "the challenge for split 'test': download MedFMC_trainval_annotation beside MedFMC_train"
    )
    assert len(MedFm(str(tmp_path), "chest", "challenge").load("train")) == 4


def test_medfm_arranged_without_the_published_labels(tmp_path):
    medfm_arranged(tmp_path, "endo", published=False)
    assert refused(MedFm(str(tmp_path), "endo").load, "test") == (
        f"{tmp_path}/endo/test_WithoutLabel.txt: an unlabelled split: its labels were published after the challenge in "
        f"Endo_published_4d.csv; put that file into {tmp_path}, or test on the labelled part with "
        "--set 'data.lists={test: endo/test_WithLabel.txt}'"
    )
    assert len(MedFm(str(tmp_path), "endo", lists={"test": "endo/test_WithLabel.txt"}).load("test")) == 2
    write(tmp_path / PUBLISHED["endo"], medfm_csv("endo", [0, 1, 2, 3, 4]))
    assert refused(MedFm(str(tmp_path), "endo").load, "test") == (
        f"{tmp_path}/endo/test_WithoutLabel.txt:2: image '{ENDO_NAMES[5]}' has no label here and none in Endo_published_4d.csv"
    )


def test_medfm_nothing_there(tmp_path):
    assert refused(MedFm(str(tmp_path), "chest").load, "train") == (
        f"{tmp_path}: no image folder for task 'chest'; expected MedFMC_train/chest/images and MedFMC_val/chest/images, or "
        "chest/images; or set data.images"
    )
    picture(tmp_path / "chest" / "image" / "a.png", 0)
    assert refused(MedFm(str(tmp_path), "chest").load, "train") == (
        f"{tmp_path}: no label lists for task 'chest', split 'train'; expected chest/trainval.txt or "
        "MedFMC_trainval_annotation/chest/; or set data.lists"
    )
    assert (
        refused(MedFm(str(tmp_path), "chest").load, "val")
        == "medfm chest, protocol official: no split 'val'; it has: train, test"
    )


# ---- CUB-200-2011


def test_cub_joins_on_the_id(tmp_path):
    source = Cub200(str(cub(tmp_path)))
    train, test = source.load("train"), source.load("test")
    assert train.classes == ["Black_footed_Albatross", "Laysan_Albatross", "Sooty_Albatross"]
    assert [name.endswith("_1.jpg") for name in train.ids] == [True] * 3, "1 is train"
    assert train.targets.tolist() == test.targets.tolist() == [0, 1, 2]
    assert Cub200(str(tmp_path / "CUB_200_2011")).load("test").ids == test.ids


def test_cub_broken(tmp_path):
    load = Cub200(str(cub(tmp_path))).load
    base = tmp_path / "CUB_200_2011"

    def error(name: str, old: str, new: str) -> str:
        good = (base / name).read_text()
        assert old in good
        (base / name).write_text(good.replace(old, new, 1))
        message = refused(load, "train")
        (base / name).write_text(good)
        return message

    assert error("image_class_labels.txt", "6 3\n", "") == (
        f"{base}/image_class_labels.txt: image id 6 is missing; images.txt has it: unpack the archive again"
    )
    assert error("image_class_labels.txt", "6 3", "6 201") == (
        f"{base}/image_class_labels.txt:1: image id 6: class 201 is not in 1..3"
    )
    assert error("train_test_split.txt", "4 1", "4 2") == (
        f"{base}/train_test_split.txt:1: image id 4: flag 2 is not 1 (train) or 0 (test)"
    )
    assert error("images.txt", "2 001", "1 001").splitlines()[0] == (
        f"{base}/images.txt:2: id 1 is listed twice (first on line 1); unpack the archive again"
    )
    assert error("images.txt", "1 001.Black", "1") == (
        f"{base}/images.txt:1: expected an id and a value with a space between, "
        "got '1_footed_Albatross/Black_footed_Albatross_0.jpg'"
        f"\n{base}/images.txt: image id 1 is missing; image_class_labels.txt has it: unpack the archive again"
        f"\n{base}/images.txt: image id 1 is missing; train_test_split.txt has it: unpack the archive again"
    )
    assert error("classes.txt", "2 002", "4 002") == f"{base}/classes.txt: class ids must be 1..3 without a gap"
    (base / "images.txt").unlink()
    assert refused(load, "train") == (
        f"{base}: no images.txt; expected CUB_200_2011/ with images/, classes.txt, images.txt, image_class_labels.txt, "
        "train_test_split.txt"
    )


# ---- ImageNet


def test_imagenet_folders(tmp_path):
    source = ImageNet(str(imagenet(tmp_path, flat=False)))
    val = source.load("val")
    assert val.classes == WNIDS
    assert val.targets.tolist() == [0, 0, 1, 1, 2, 2]
    assert source.load("train").ids[0] == "n01440764/n01440764_0.JPEG"


def test_imagenet_flat_val_with_kaggle_s_file_in_no_order(tmp_path):
    base = imagenet(tmp_path / "ILSVRC" / "Data" / "CLS-LOC", flat=True)
    lines = [f"ILSVRC2012_val_{i + 1:08d},{WNIDS[i // 2]} 85 1 499 272 {WNIDS[i // 2]} 1 2 3 4" for i in (5, 0, 3, 1, 2, 4)]
    path = write(tmp_path / "LOC_val_solution.csv", "ImageId,PredictionString\n" + "\n".join(lines))
    val = ImageNet(str(tmp_path)).load("val")
    assert val.classes == WNIDS
    assert sorted(zip(val.ids, val.targets.tolist(), strict=True)) == [(f"ILSVRC2012_val_{i + 1:08d}", i // 2) for i in range(6)]
    write(path, path.read_text().replace("val_00000001,n01440764", "val_00000001,0"))
    assert refused(ImageNet(str(tmp_path)).load, "val") == (
        f"{path}:3: id 'ILSVRC2012_val_00000001': expected a wnid such as n01440764, got '0 85 1 499 272 n01440764 1 2 3 4'"
    )
    path.unlink()
    assert refused(ImageNet(str(tmp_path)).load, "val") == (
        f"{tmp_path}: no labels for {base}/val; tried LOC_val_solution.csv, ILSVRC2012_validation_ground_truth.txt, "
        "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt; images lie loose here, so their labels must come "
        "from a file: put one of these there, or set data.labels"
    )


def test_imagenet_flat_val_with_the_devkit_whose_numbers_are_not_timm_s(tmp_path):
    source = ImageNet(str(imagenet_devkit(imagenet(tmp_path, flat=True))))
    assert source.load("val").targets.tolist() == [0, 0, 1, 1, 2, 2]
    path = tmp_path / "ILSVRC2012_devkit_t12" / "data" / "ILSVRC2012_validation_ground_truth.txt"
    path.write_text("2\n2\n3\n3\n1\n")
    assert refused(source.load, "val") == (f"{path}: 5 labels for 6 images in {tmp_path}/val; one of the two is incomplete")
    path.write_text("val.zip@/ILSVRC2012_val_00000001.JPEG 65\n4\n")
    assert refused(source.load, "val") == (
        f"{path}:1: expected a class number from 1 to 3, got 'val.zip@/ILSVRC2012_val_00000001.JPEG 65'\n"
        f"{path}:2: expected a class number from 1 to 3, got '4'"
    )


# ---- torchvision's


def test_pets_and_cars(tmp_path):
    train = Torchvision("OxfordIIITPet", str(pets(tmp_path))).load("trainval")
    assert train.targets.tolist() == [0, 0, 1, 1]
    assert train.classes == ["Abyssinian", "American Bulldog"]
    assert train.ids[0] == "oxford-iiit-pet/images/Abyssinian_0.jpg"
    test = Torchvision("StanfordCars", str(cars(tmp_path))).load("test")
    assert test.classes == ["AM General Hummer", "Acura RL"]
    assert test.targets.tolist() == [0, 1]
    assert test.read(1).size == (12, 10)


def test_cars_as_the_mirror_has_it(tmp_path):
    source = Torchvision("StanfordCars", str(cars(tmp_path)))
    base = tmp_path / "stanford_cars"
    shutil.move(base / "cars_train", base / "inner")
    shutil.move(base / "inner", base / "cars_train" / "cars_train")
    assert refused(source.load, "train") == f"{base}/cars_train: holds another cars_train; move the images up one folder"
    (base / "cars_test_annos_withlabels.mat").unlink()
    assert refused(source.load, "test") == (
        f"{base}: Stanford Cars needs cars_test, cars_test_annos_withlabels.mat, devkit/cars_meta.mat there; missing: "
        "cars_test_annos_withlabels.mat; the devkit's cars_test_annos.mat has no labels: the file with labels is published "
        "separately"
    )
    shutil.move(base / "devkit", base / "car_devkit" / "devkit")
    assert refused(source.load, "train") == (
        f"{base}: Stanford Cars needs cars_train, devkit/cars_train_annos.mat, devkit/cars_meta.mat there; missing: "
        "devkit/cars_train_annos.mat, devkit/cars_meta.mat; move car_devkit/devkit up to devkit"
    )
    with pytest.raises(ValueError, match="^download: torchvision cannot download StanfordCars; fetch it yourself and set"):
        Torchvision("StanfordCars", download=True)


def test_torchvision_s_imagenet(tmp_path):
    import torch

    imagenet(tmp_path, flat=False)
    assert refused(Torchvision("ImageNet", str(tmp_path)).load, "val") == (
        f"torchvision ImageNet in {tmp_path}: The archive ILSVRC2012_devkit_t12.tar.gz is not present in the root directory "
        "or is corrupted. You need to download it externally and place it in "
        f"{tmp_path}.; check data.root; data.format imagenet reads folders and a flat val/ without meta.bin"
    )
    torch.save(({wnid: (name,) for wnid, name in zip(WNIDS, "abc", strict=True)}, []), tmp_path / "meta.bin")
    assert Torchvision("ImageNet", str(tmp_path)).load("val").targets.tolist() == [0, 0, 1, 1, 2, 2]


# ---- captions


def test_captions(tmp_path):
    flickr(tmp_path)
    keys = {"images": "Flicker8k_Dataset", "style": "token"}
    split = Captions(str(tmp_path), {"train": "Flickr8k.token.txt"}, lists={"train": "Flickr_8k.trainImages.txt"}, **keys).load(
        "train"
    )
    assert split.ids == ["0.jpg", "2.jpg"]
    assert split.captions == [
        ["Caption 0 of image 0 .", "Caption 1 of image 0 ."],
        ["Caption 0 of image 2 .", "Caption 1 of image 2 ."],
    ]
    assert split.task == "captions"
    table = Captions(str(tmp_path), {"train": "captions.txt"}, images="Flicker8k_Dataset").load("train")
    assert table.captions == [["A dog , running", "Another dog"], ["A cat"]]
    assert table.take([1]).captions == [["A cat"]]


def test_captions_cc3m_and_rotten_links(tmp_path):
    labels = {"train": "Train_GCC-training.tsv"}
    path = cc3m(tmp_path) / labels["train"]
    strict = Captions(str(tmp_path), labels, style="cc3m", images="images")
    assert refused(strict.load, "train") == (
        f"{path}:3: image 'http://x.org/c.jpg' not found in {tmp_path}/images; 1 of 3 images are missing; "
        "set data.max_missing: 0.34 to go on without them"
    )
    split = Captions(str(tmp_path), labels, style="cc3m", images="images", max_missing=0.34).load("train")
    assert split.ids == ["dog.jpg", "00000/000000001.jpg"]
    assert split.captions == [["a dog"], ["a cat"]]
    path.write_text("caption\turl\n" + path.read_text())
    assert Captions(str(tmp_path), labels, style="cc3m", images="images", max_missing=0.34).load("train").ids == split.ids


def test_cc3m_splits_do_not_borrow_images_from_each_other(tmp_path):
    for split, seed in (("train", 1), ("val", 2)):
        write(tmp_path / f"{split}.tsv", f"a {split} dog\thttp://x.org/dog?{seed}\nagain\thttp://[y.org/dog\n")
        picture(tmp_path / split / "00000" / "000000000.jpg", seed)
    labels = {"train": "train.tsv", "val": "val.tsv"}
    source = Captions(str(tmp_path), labels, style="cc3m", images={"train": "train", "val": "val"}, max_missing=0.5)
    val = source.load("val")
    assert (val.captions, val.left_out) == ([["a val dog"]], 1)
    assert val.paths == [tmp_path / "val" / "00000" / "000000000.jpg"]
    with pytest.raises(ValueError, match="^images: each split of style cc3m has rows of its own"):
        Captions(str(tmp_path), labels, style="cc3m", images="train")
    picture(tmp_path / "val" / "00001" / "000000000.jpg", 5)
    assert refused(source.load, "val") == (
        f"{tmp_path}/val: 00000/000000000.jpg and 00001/000000000.jpg both claim row 0; keep one download"
    )


def test_captions_broken(tmp_path):
    flickr(tmp_path)
    keys = {"images": "Flicker8k_Dataset"}
    path = write(tmp_path / "t.txt", "0.jpg#0 no tab\n1.jpg#0\t \n")
    assert refused(Captions(str(tmp_path), {"train": "t.txt"}, style="token", **keys).load, "train") == (
        f"{path}:1: expected name.jpg#0, a tab and a caption, got '0.jpg#0 no tab'\n"
        f"{path}:2: image '1.jpg' has an empty caption; fill it or remove the line"
    )
    assert refused(Captions(str(tmp_path), {"train": "captions.txt"}, caption_column="title", **keys).load, "train") == (
        f"{tmp_path}/captions.txt:1: no column 'title'; it has: image, caption; "
        "set data.image_column, data.caption_column and data.delimiter"
    )
    assert refused(Captions(str(tmp_path), {"train": "t.txt"}, style="cc3m", **keys).load, "train").startswith(
        f"{path}:1: expected a caption, a tab and a url, got '0.jpg#0 no tab'"
    )
