"""rift data check: what it finds, what it says, how it exits; every image really decoded."""

from __future__ import annotations

import io
import json
import shutil
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from dataset_copies import aptos_mirror, isic, medfm_downloaded, picture
from jsonschema import Draft202012Validator
from PIL import Image
from scipy.ndimage import gaussian_filter

from riftcli.data.inspection import inspect_file, near_pairs, perceptual_hash

SCHEMA = Draft202012Validator(json.loads((files("riftcli") / "assets" / "data_check.schema.json").read_text()))


@pytest.fixture
def check(rift):
    """Run the command; returns (exit code, report, stderr)."""

    def run(root: Path, name: str, *arguments: object) -> tuple[int, dict, str]:
        code, out, err = rift(
            "data", "check", "--recipe", name, "--set", f"data.root={root}", "--json", "--workers", 1, *arguments
        )
        report = json.loads(out)
        SCHEMA.validate(report)
        return code, report, err

    return run


def a_scene(seed: int) -> np.ndarray:
    """(64, 80) uint8: blobs, as a picture has them; plain noise has no coarse structure."""
    smooth = gaussian_filter(np.random.default_rng(seed).normal(size=(64, 80)), 5)
    return (127 + 100 * smooth / np.abs(smooth).max()).astype("uint8")


def found(report: dict, check: str, level: str | None = None) -> list[dict]:
    return [f for f in report["findings"] if f["check"] == check and level in (None, f["level"])]


def test_a_good_copy(check, tmp_path):
    code, report, err = check(isic(tmp_path / "isic", train=14), "isic_full_rift")
    assert (code, report["errors"], report["schema"]) == (0, 0, "rift.data_check/1")
    splits = report["splits"]
    assert splits["train"]["n"] + splits["val"]["n"] == 14
    assert splits["test"]["class_counts"] == dict.fromkeys(["MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC"], 1)
    assert splits["test"]["modes"] == {"RGB": 7}
    assert splits["test"]["sizes"] == {
        "width": {"min": 12, "median": 12, "max": 12},
        "height": {"min": 10, "median": 10, "max": 10},
    }
    assert splits["train"]["groups"]["lesion"] + splits["val"]["groups"]["lesion"] == 7
    assert "0 errors" in err
    missing = found(report, "classes")
    assert missing and missing[0]["level"] == "warning", "a tenth of 7 lesions cannot hold all classes"


def test_labels_and_images_that_are_wrong_are_all_found_in_one_go(check, tmp_path):
    root = isic(tmp_path / "isic", train=14)
    truth = root / "ISIC2018_Task3_Test_GroundTruth" / "ISIC2018_Task3_Test_GroundTruth.csv"
    truth.write_text(truth.read_text().replace("1.0", "0.0"))
    folder = root / "ISIC2018_Task3_Training_Input"
    (folder / "ISIC_0024306.jpg").write_bytes(b"")
    data = (folder / "ISIC_0024307.jpg").read_bytes()
    (folder / "ISIC_0024307.jpg").write_bytes(data[: len(data) // 2])
    (folder / "ISIC_0024308.jpg").write_text("<html>not found</html>")
    code, report, err = check(root, "isic_full_rift", "--set", "data.val=null")
    assert code == 3
    unreadable = found(report, "unreadable", "error")[0]
    assert (unreadable["count"], unreadable["splits"]) == (3, ["train"])
    assert unreadable["examples"][0] == (
        f"{folder}/ISIC_0024306.jpg: unreadable image (the file is empty); replace it or take it out of the split"
    )
    assert "truncated" in unreadable["examples"][1].lower(), "a full decode, not a look at the header"
    assert found(report, "labels", "error")[0]["count"] == 7
    assert f"error: {truth}:2: one-hot row with 0 ones; exactly one class must be 1\n" in err
    assert "  and 2 more (7 in all)\n" in err
    assert "error: train: 3 of 14 images are unreadable\n" in err


def test_duplicates_overlap_and_conflicts_by_content(check, tmp_path):
    root = aptos_mirror(tmp_path / "aptos")
    train, test = root / "train_images" / "train_images", root / "test_images" / "test_images"
    shutil.copy(train / f"{1:012x}.png", train / f"{6:012x}.png")  # grades 0 and 0
    shutil.copy(train / f"{2:012x}.png", train / f"{3:012x}.png")  # grades 1 and 2
    shutil.copy(train / f"{4:012x}.png", test / f"{16:012x}.png")
    code, report, err = check(root, "aptos_full")
    assert code == 3
    same, torn = found(report, "duplicates", "warning")
    assert same["message"] == "1 images are there more than once, with the same label"
    assert torn["message"] == "1 images are there more than once, with different labels"
    assert torn["examples"] == [f"{2:012x} = {3:012x}"]
    (overlap,) = found(report, "overlap")
    assert (overlap["level"], overlap["count"]) == ("error", 1)
    assert overlap["message"] == "1 images of 'train' are in 'test' too, under other ids; take them out of one"
    assert overlap["examples"] == [f"{4:012x} = {16:012x}"]
    code, report, _ = check(root, "aptos_full", "--set", "data.allow_overlap=true")
    assert (code, report["errors"]) == (0, 0)
    assert check(root, "aptos_full", "--set", "data.allow_overlap=true", "--strict")[0] == 3


def test_the_papers_medfm_counts_are_seen_to_leak(check, tmp_path):
    root = medfm_downloaded(tmp_path / "medfm", "chest")
    code, report, _ = check(root, "medfm_chest_full_rift", "--set", "data.protocol=paper", "--set", "data.val=null")
    assert code == 3
    assert found(report, "overlap")[0]["message"] == "splits 'train' and 'test' share 2 samples; take them out of one"
    assert check(root, "medfm_chest_full_rift", "--set", "data.val=null")[0] == 0


def test_group_leakage_and_a_link_to_the_same_file(check, tmp_path):
    root = medfm_downloaded(tmp_path / "medfm", "endo")
    settings = ["--set", "data.val={fraction: 0.5, from: train}"]
    code, report, _ = check(root, "medfm_endo_full", *settings)
    (leak,) = found(report, "groups")
    assert leak["message"] == (
        "group 'study': 1 of them have images in 'train' and in 'val' (1 images of 'val'): the model has seen them; "
        "set data.val.group: study"
    )
    assert code == 0, "a warning"
    lists = root / "MedFMC_trainval_annotation" / "endo" / "trainval.txt"
    link = root / "MedFMC_train" / "endo" / "images" / "other_name_1.png"
    link.symlink_to(root / "MedFMC_train" / "endo" / "images" / "13333_2021.11_0001_54952.png")
    lists.write_text(lists.read_text() + f"{link.name} 0 0 1 0\n")
    code, report, _ = check(root, "medfm_endo_full", "--set", "data.val=null")
    assert found(report, "overlap", "error")[0]["examples"] == [link.name]


def test_modes_and_near_duplicates(check, tmp_path):
    root = aptos_mirror(tmp_path / "aptos")
    train = root / "train_images" / "train_images"
    scene = a_scene(0)
    Image.fromarray(scene).convert("RGBA").save(train / f"{1:012x}.png")
    buffer = io.BytesIO()
    Image.fromarray(scene).convert("RGB").resize((60, 48)).save(buffer, "JPEG", quality=70)
    (train / f"{2:012x}.png").write_bytes(buffer.getvalue())
    Image.fromarray(scene.astype("uint16") * 16).save(train / f"{3:012x}.png")
    Image.new("RGB", (20, 20), (9, 9, 9)).save(train / f"{4:012x}.png")
    Image.new("RGB", (20, 21), (9, 9, 9)).save(train / f"{5:012x}.png")
    code, report, _ = check(root, "aptos_full")
    assert code == 3
    assert found(report, "unreadable")[0]["examples"][0] == (
        f"{train}/{3:012x}.png: I;16 pixels (16 or 32 bits): a conversion to 8 bits would clip them; say how many bits are used "
        "with --set input.bit_depth=12 (up to 16), or rescale them with a window"
    )
    assert found(report, "modes")[0]["message"] == "1 images have an alpha channel, which is dropped (RGBA)"
    (near,) = found(report, "near")
    assert near["examples"] == [f"{1:012x} ~ {2:012x}"], "a smaller, re-saved copy; flat pictures are not compared"
    code, report, _ = check(root, "aptos_full", "--set", "input.bit_depth=12", "--near", 0)
    assert (code, found(report, "near"), found(report, "unreadable")) == (0, [], [])
    assert report["splits"]["train"]["modes"]["I;16"] == 1


def test_the_page_shows_samples_and_opens_without_a_network(check, tmp_path):
    root = aptos_mirror(tmp_path / "aptos")
    picture(root / "train_images" / "train_images" / f"{1:012x}.png", 0).write_bytes(b"broken")
    _, report, err = check(root, "aptos_full", "--html", "deep/page.html")
    page = Path("deep/page.html").read_text()
    assert "<h2>Findings</h2>" in page
    assert page.count("data:image/jpeg;base64,") == 9 + 5 + 5
    assert "Proliferative DR" in page and "unreadable" in page
    assert "http" not in page.replace(f"{root}", "")
    assert "page: deep/page.html" in err


def test_data_without_files_is_checked_too(rift):
    code, out, err = rift("data", "check", "--recipe", "demo_rift", "--json", "--strict")
    report = json.loads(out)
    assert code == 0
    assert report["splits"]["train"]["n"] == 1038
    assert report["splits"]["demo_fashion/train"]["data"] == "demo_fashion"
    assert "Ankle boot" in err


def test_several_processes_find_the_same(check, tmp_path):
    root = isic(tmp_path / "isic", train=70)
    first = check(root, "isic_full_rift")[1]
    second = check(root, "isic_full_rift", "--workers", 2)[1]
    assert {**second, "created": ""} == {**first, "created": ""}


def test_a_recipe_is_needed(rift):
    assert rift("data", "check")[0] == 2


def test_perceptual_hash_bits(tmp_path):
    images = [Image.fromarray(a_scene(seed)) for seed in range(20)]
    hashes = [perceptual_hash(image) for image in images]
    for image, value in zip(images, hashes, strict=True):
        again = perceptual_hash(image.resize((200, 160)))
        assert again is not None and value is not None and (again ^ value).bit_count() <= 4
    assert perceptual_hash(Image.new("RGB", (5, 5))) is None
    slow = [(i, j) for i in range(20) for j in range(i + 1, 20) if (hashes[i] ^ hashes[j]).bit_count() <= 24]
    assert sorted(near_pairs(hashes, 24)[0]) == slow != []
    assert near_pairs([None, 5, None, 5], 0) == ([(1, 3)], True)
    assert near_pairs([], 4) == ([], True)
    assert inspect_file(None, tmp_path / "none.png").problem == f"{tmp_path}/none.png: image not found"


def test_names_with_brackets_the_page_of_16_bit_images_and_a_page_that_cannot_be_written(rift, tmp_path, write_recipe):
    ramp = np.linspace(0, 4095, 40 * 40).reshape(40, 40).astype("uint16")
    for split in ("train", "test"):
        for k, label in enumerate(("AMD [wet]", "DME")):
            (tmp_path / "eyes" / split / label).mkdir(parents=True)
            Image.fromarray(np.roll(ramp, 9 * k + 20 * (split == "test"))).save(tmp_path / "eyes" / split / label / "a.png")
    data = {"format": "image_folder", "root": str(tmp_path / "eyes")}
    recipe = write_recipe({"model": {"name": "vit_tiny_patch16_224"}, "data": data, "retention": [{**data}, {**data}]})
    settings = ["--recipe", recipe, "--set", "input.bit_depth=12", "--near", 0, "--workers", 1]
    code, out, err = rift("data", "check", *settings, "--html", "p.html", "--json")
    assert code == 0, err
    assert "AMD [wet]" in err
    assert Path("p.html").read_text().count("data:image/jpeg;base64,") == 4 * 3
    assert list(json.loads(out)["splits"])[2:] == ["eyes/train", "eyes/test", "eyes-1/train", "eyes-1/test"]
    assert rift("data", "check", *settings, "--html", tmp_path)[2] == (
        f"error: --html {tmp_path}: not a file that can be written\n"
    )


def test_many_copies_of_one_picture_do_not_fill_the_memory():
    pairs, complete = near_pairs([7] * 2000, 4)
    assert (len(pairs), complete) == (100_000, False)


def test_everything_that_was_found_is_in_the_json(check, tmp_path):
    root = isic(tmp_path / "isic", train=14)
    for path in sorted((root / "ISIC2018_Task3_Training_Input").glob("*.jpg"))[:9]:
        path.write_bytes(b"x")
    _, report, err = check(root, "isic_full_rift", "--set", "data.val=null")
    assert len(found(report, "unreadable")[0]["examples"]) == 9
    assert "  and 4 more (--json lists them)" in err


def test_a_missing_folder_is_told_once_for_all_splits(rift, tmp_path):
    code, _, err = rift("data", "check", "--recipe", "isic_full", "--set", "data.root=/nowhere")
    where = f"(looked in {tmp_path}); set root, e.g. --set data.root=/path/to/data"
    assert (code, err) == (3, f"error: /nowhere: no such data folder {where}\n1 errors, 0 warnings\n")
