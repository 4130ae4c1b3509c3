"""Sets of vision-language studies in their published layouts, whole and broken."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from riftcli.data.datasets.captions import Captions
from riftcli.data.datasets.fmow import Fmow
from riftcli.data.datasets.imagenet_shift import ImageNetShift
from riftcli.data.datasets.iwildcam import IWildCam
from riftcli.data.datasets.torchvision import Torchvision
from riftcli.errors import DataError
from riftcli.recipe.prompts import class_names, class_texts, imagenet_wnids, shipped

WNIDS = imagenet_wnids()


def image(path: Path, shade: int = 90) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (shade, 40, 200)).save(path)
    return path


def fails(source, split: str, part: str) -> None:
    with pytest.raises(DataError) as caught:
        source.load(split)
    assert part in str(caught.value), caught.value


# ---- ImageNet under other conditions


def test_imagenet_v2_numbers_are_class_indices(tmp_path):
    for name in ("0", "10", "9"):  # as text, 10 comes before 9
        image(tmp_path / "imagenetv2-matched-frequency-format-val" / name / "a.jpeg")
    split = ImageNetShift(str(tmp_path), "v2").load("test")
    assert split.classes == [WNIDS[0], WNIDS[9], WNIDS[10]]
    assert {Path(i).parent.name: split.classes[t] for i, t in zip(split.ids, split.targets, strict=True)} == {
        "0": WNIDS[0],
        "9": WNIDS[9],
        "10": WNIDS[10],
    }
    image(tmp_path / "imagenetv2-matched-frequency-format-val" / "1000" / "a.jpeg")
    fails(ImageNetShift(str(tmp_path), "v2"), "test", "folder '1000' is no class index from 0 to 999")


@pytest.mark.parametrize(("kind", "folder"), [("r", "imagenet-r"), ("a", "imagenet-a"), ("sketch", "sketch")])
def test_wnid_folders(tmp_path, kind, folder):
    for wnid in (WNIDS[3], WNIDS[1]):
        image(tmp_path / folder / wnid / "b.jpg")
    (tmp_path / folder / "README.txt").write_text("x")
    split = ImageNetShift(str(tmp_path), kind).load("test")
    assert split.classes == [WNIDS[1], WNIDS[3]] and split.targets.tolist() == [0, 1]
    fails(ImageNetShift(str(tmp_path), kind), "val", "no split 'val'")
    image(tmp_path / folder / "n99999999" / "a.jpg")
    fails(ImageNetShift(str(tmp_path), kind), "test", "no classes of ImageNet-1K (e.g. 'n99999999')")


def test_missing_folders_are_named(tmp_path):
    (tmp_path / "imagenet-a" / WNIDS[0]).mkdir(parents=True)
    fails(ImageNetShift(str(tmp_path), "a"), "test", "class folder without images")
    fails(ImageNetShift(str(tmp_path), "r"), "test", "no class folders (n01443537, ...) in it or in imagenet-r")


def write_objectnet(root: Path) -> Path:
    base = root / "objectnet-1.0"
    for folder in ("alarm_clock", "banana", "air_freshener"):
        image(base / "images" / folder / "x.png")
    maps = base / "mappings"
    maps.mkdir()
    labels = {"alarm_clock": "Alarm clock", "banana": "Banana", "air_freshener": "Air freshener"}
    (maps / "folder_to_objectnet_label.json").write_text(json.dumps(labels))
    known = {"Alarm clock": "analog clock; digital clock", "Banana": "banana"}
    (maps / "objectnet_to_imagenet_1k.json").write_text(json.dumps(known))
    (maps / "pytorch_to_imagenet_2012_id.json").write_text(json.dumps({"409": 1, "530": 0, "954": 2}))
    (maps / "imagenet_to_label_2012_v2").write_text("digital clock\nanalog clock\nbanana\n")
    return root


def test_objectnet_keeps_the_classes_that_imagenet_has(tmp_path):
    split = ImageNetShift(str(write_objectnet(tmp_path)), "objectnet").load("test")
    assert split.classes == ["alarm_clock", "banana"] and len(split) == 2
    assert split.members == [[WNIDS[409], WNIDS[530]], [WNIDS[954]]]
    (tmp_path / "objectnet-1.0" / "mappings" / "imagenet_to_label_2012_v2").write_text("digital clock\nbanana\n")
    fails(ImageNetShift(str(tmp_path), "objectnet"), "test", "'Alarm clock' (analog clock) is in one mapping and not in another")
    (tmp_path / "objectnet-1.0" / "mappings" / "objectnet_to_imagenet_1k.json").unlink()
    fails(ImageNetShift(str(tmp_path), "objectnet"), "test", "no mappings/objectnet_to_imagenet_1k.json")


def test_a_class_with_several_members_takes_the_largest_logit(tmp_path):
    import torch

    from riftcli.evaluation.zero_shot import restricted

    split = ImageNetShift(str(write_objectnet(tmp_path)), "objectnet").load("test")
    logits = torch.zeros(1, 1000)
    logits[0, 530], logits[0, 409], logits[0, 954], logits[0, 0] = 3.0, 1.0, 2.0, 9.0
    assert restricted(logits, split, WNIDS).tolist() == [[3.0, 2.0]]


# ---- WILDS


def write_iwildcam(root: Path) -> Path:
    base = root / "iwildcam_v2.0"
    rows = ["split,location_remapped,y,filename,datetime"]
    for i, (split, y) in enumerate([("train", 0), ("train", 2), ("id_val", 1), ("id_test", 1), ("val", 0), ("test", 2)]):
        rows.append(f"{split},{i % 3},{y},{i}.jpg,2013-01-01")
        image(base / "train" / f"{i}.jpg")
    (base / "metadata.csv").write_text("\n".join(rows) + "\n")
    (base / "categories.csv").write_text(
        "category_id,name,y\n0,empty,0\n24,gazella granti,2\n2,tayassu pecari,1\n9,never,99999\n"
    )
    return root


def test_iwildcam(tmp_path):
    source = IWildCam(str(write_iwildcam(tmp_path)))
    train = source.load("train")
    assert train.classes == ["empty", "tayassu pecari", "gazella granti"]
    assert train.targets.tolist() == [0, 2] and train.groups == {"location": ["0", "1"]}
    assert [len(source.load(name)) for name in ("id_val", "id_test", "val", "test")] == [1, 1, 1, 1]
    path = tmp_path / "iwildcam_v2.0" / "metadata.csv"
    path.write_text(path.read_text().replace("train,0,0,0.jpg", "train,0,7,0.jpg"))
    fails(source, "train", "metadata.csv:2: y '7' is no class from 0 to 2")
    (tmp_path / "iwildcam_v2.0" / "categories.csv").write_text("category_id,name,y\n0,empty,0\n2,tayassu,2\n")
    fails(source, "train", "no category has y 1")
    fails(IWildCam(str(tmp_path / "iwildcam_v2.0" / "train")), "train", "no metadata.csv in it or in iwildcam_v2.0")


def write_fmow(root: Path) -> Path:
    base = root / "fmow_v1.1"
    rows = ["split,img_path,category,timestamp,country_code"]
    kinds = [
        ("train", "zoo", "2010", "DEU"),
        ("seq", "zoo", "2011", "DEU"),  # sequestered: it has a row and a number, and no split
        ("train", "barn", "2014", "DEU"),
        ("test", "barn", "2011", "KEN"),
        ("test", "zoo", "2016", "XKX"),
        ("val", "barn", "2015", "KEN"),
        ("val", "zoo", "2012", "KEN"),
    ]
    for i, (split, category, year, country) in enumerate(kinds):
        rows.append(f"{split},p/{i}.jpg,{category},{year}-05-05T10:00:00Z,{country}")
        image(base / "images" / f"rgb_img_{i}.png")
    (base / "rgb_metadata.csv").write_text("\n".join(rows) + "\n")
    (base / "country_code_mapping.csv").write_text("name,alpha-2,alpha-3,region\nGermany,DE,DEU,Europe\nKenya,KE,KEN,Africa\n")
    return root


def test_fmow_splits_by_year_and_numbers_rows_with_the_sequestered(tmp_path):
    source = Fmow(str(write_fmow(tmp_path)))
    names = {name: source.load(name).ids for name in ("train", "id_val", "id_test", "val", "test")}
    assert names == {
        "train": ["rgb_img_0.png"],
        "id_val": ["rgb_img_6.png"],
        "id_test": ["rgb_img_3.png"],
        "val": ["rgb_img_5.png"],
        "test": ["rgb_img_4.png"],
    }
    assert source.load("train").classes == ["barn", "zoo"] and source.load("id_test").groups["region"] == ["Africa"]
    assert source.load("test").groups["region"] == [""]  # no region: worst_group leaves it out
    (tmp_path / "fmow_v1.1" / "images" / "rgb_img_0.png").unlink()
    fails(source, "train", "rgb_metadata.csv:2: image 'rgb_img_0.png' not found")
    path = tmp_path / "fmow_v1.1" / "rgb_metadata.csv"
    path.write_text(path.read_text().replace("2010-05", "xx"))
    fails(source, "train", "does not start with a year")
    (tmp_path / "fmow_v1.1" / "country_code_mapping.csv").write_text("name,code\n")
    fails(source, "test", "country_code_mapping.csv:1: no column 'alpha-3'")


def test_worst_group_leaves_out_samples_of_no_group():
    import torch

    from riftcli.evaluation.metrics.classification import WorstGroup
    from riftcli.protocols import Predictions

    logits = torch.eye(2)[[0, 0, 1, 1, 0]]
    seen = Predictions(logits, torch.tensor([0, 1, 1, 1, 1]), logits, ["a", "b"], "multiclass", None, ["x", "x", "y", "y", ""])
    found = WorstGroup().compute(seen)
    assert found == {"value": 0.5, "group": "x", "per_group": {"x": 0.5, "y": 1.0}}


# ---- torchvision's zero-shot sets


def test_caltech101(tmp_path):
    base = tmp_path / "caltech101" / "101_ObjectCategories"
    for name, count in (("BACKGROUND_Google", 1), ("Faces", 2), ("airplanes", 1)):
        for i in range(count):
            image(base / name / f"image_{i + 1:04d}.jpg")
    (tmp_path / "caltech101" / "Annotations").mkdir()
    split = Torchvision("Caltech101", str(tmp_path)).load("all")
    assert split.classes == ["Faces", "airplanes"] and split.targets.tolist() == [0, 0, 1]
    assert [p.name for p in split.paths] == ["image_0001.jpg", "image_0002.jpg", "image_0001.jpg"]
    assert class_names(split.classes, shipped()["class_names"]["caltech101"], "prompts") == ["off-center face", "airplane"]
    fails(Torchvision("Caltech101", str(tmp_path)), "test", "no split 'test'")


def test_eurosat_and_sun397_in_an_order_of_their_own(tmp_path):
    for name in ("River", "AnnualCrop"):
        image(tmp_path / "eurosat" / "2750" / name / f"{name}_1.jpg")
    split = Torchvision("EuroSAT", str(tmp_path)).load("all")
    assert class_names(split.classes, "eurosat", "prompts") == ["annual crop land", "river"]
    base = tmp_path / "SUN397"
    for name in ("z/zoo", "a/apartment_building/outdoor"):
        for i in (2, 1):
            image(base / name / f"sun_{i}.jpg")
    (base / "ClassName.txt").write_text("/a/apartment_building/outdoor\n/z/zoo\n")
    split = Torchvision("SUN397", str(tmp_path)).load("all")
    assert split.ids == sorted(split.ids) and split.targets.tolist() == [0, 0, 1, 1]
    assert class_names(split.classes, None, "prompts")[0] == "apartment building outdoor"
    fails(Torchvision("SUN397", str(tmp_path / "eurosat")), "all", "torchvision SUN397")


def test_fgvc_aircraft(tmp_path):
    base = tmp_path / "fgvc-aircraft-2013b" / "data"
    image(base / "images" / "0001.jpg")
    (base / "variants.txt").write_text("707-320\n727-200\n")
    (base / "images_variant_test.txt").write_text("0001 727-200\n")
    split = Torchvision("FGVCAircraft", str(tmp_path)).load("test")
    assert split.classes == ["707-320", "727-200"] and split.targets.tolist() == [1]
    (base / "images" / "0001.jpg").unlink()
    fails(Torchvision("FGVCAircraft", str(tmp_path)), "test", "0001.jpg")


def test_food101(tmp_path):
    base = tmp_path / "food-101"
    (base / "meta").mkdir(parents=True)
    for name in ("cup_cakes/1", "cup_cakes/2", "pho/7"):
        image(base / "images" / f"{name}.jpg")
    (base / "meta" / "test.json").write_text(json.dumps({"cup_cakes": ["cup_cakes/1", "cup_cakes/2"], "pho": ["pho/7"]}))
    split = Torchvision("Food101", str(tmp_path)).load("test")
    assert split.targets.tolist() == [0, 0, 1] and split.ids[2] == "food-101/images/pho/7.jpg"
    assert class_texts(split.classes, "food", None, "prompts")[0] == ["a photo of cup cakes, a type of food."]
    (base / "images" / "pho" / "7.jpg").unlink()
    fails(Torchvision("Food101", str(tmp_path)), "test", "7.jpg")
    fails(Torchvision("Food101", str(tmp_path / "nowhere")), "test", "no such data folder")


def test_dtd(tmp_path):
    base = tmp_path / "dtd" / "dtd"
    (base / "labels").mkdir(parents=True)
    for name in ("polka-dotted/polka-dotted_0001", "banded/banded_0002"):
        image(base / "images" / f"{name}.jpg")
    (base / "labels" / "test1.txt").write_text("polka-dotted/polka-dotted_0001.jpg\nbanded/banded_0002.jpg\n")
    split = Torchvision("DTD", str(tmp_path)).load("test")
    assert split.classes == ["banded", "polka-dotted"] and split.targets.tolist() == [1, 0]
    assert class_texts(split.classes, "dtd", None, "prompts")[1][0] == "a photo of a polka-dotted texture."
    (base / "images" / "banded" / "banded_0002.jpg").unlink()
    fails(Torchvision("DTD", str(tmp_path)), "test", "banded_0002.jpg")


# ---- COCO's captions


def test_coco_captions(tmp_path):
    image(tmp_path / "val2017" / "000007.jpg")
    image(tmp_path / "val2017" / "000009.jpg")
    found = {
        "images": [{"id": 7, "file_name": "000007.jpg"}, {"id": 9, "file_name": "000009.jpg"}],
        "annotations": [
            {"image_id": 9, "caption": "two"},
            {"image_id": 7, "caption": "one"},
            {"image_id": 9, "caption": "three"},
        ],
    }
    path = tmp_path / "captions_val2017.json"
    path.write_text(json.dumps(found))
    source = Captions(str(tmp_path), {"val": path.name}, style="coco", images="val2017")
    split = source.load("val")
    assert split.ids == ["000009.jpg", "000007.jpg"] and split.captions == [["two", "three"], ["one"]]
    found["annotations"].append({"image_id": 8, "caption": "lost"})
    path.write_text(json.dumps(found))
    fails(source, "val", "annotation 4 is of image 8, which is not among its images")
    path.write_text("[]")
    fails(source, "val", "not COCO's captions")


# ---- words for classes


def test_prompts_name_every_class():
    texts = class_texts(["n01440764", "n01443537"], "openai80", None, "prompts")
    assert len(texts[0]) == 80 and texts[1][0] == "a bad photo of a goldfish."
    assert class_texts(["airport"], "fmow", None, "prompts")[0][1] == "satellite photo of an airport."
    assert class_names(["a_b", "c"], {"c": "sea"}, "prompts") == ["a b", "sea"]


def test_shipped_names_cover_their_sets():
    from torchvision.datasets import Flowers102

    names = class_names(Flowers102.classes, "flowers", "prompts")
    changed = [(own, name) for own, name in zip(Flowers102.classes, names, strict=True) if own != name]
    assert len(names) == 102 and changed[0] == ("globe-flower", "globe flower") and len(changed) == 3
    assert class_names(["F/A-18", "A380"], "aircraft", "prompts") == ["F/A-18", "A380"]
    assert class_names(["A380"], "aircraft", "prompts") == ["A380"]  # a part of the set without what is corrected
    assert class_names(["HandstandPushups", "Yo_Yo", "PlayingTabla"], "ucf101", "prompts") == [
        "Hand Stand Pushups",
        "Yo Yo",
        "Playing Tabla",
    ]
    species = shipped()["class_names"]["iwildcam"]
    assert len(species) == 182 and species["mazama temama 153"] == species["mazama temama 181"]
    assert class_names(["tayassu pecari", "motorcycle"], "iwildcam", "prompts") == ["white-lipped peccary", "motorcycle"]


@pytest.mark.parametrize(
    ("names", "part"),
    [
        (["one"], "1 names for 2 classes; give one per class, in order"),
        (["one", " "], "class 'y' has no name"),
        ({"q": "z"}, "none of its 1 classes is in the data (e.g. 'q')"),
    ],
)
def test_a_class_without_a_name_is_refused(names, part):
    with pytest.raises(DataError) as caught:
        class_names(["x", "y"], names, "prompts")
    assert part in str(caught.value)
