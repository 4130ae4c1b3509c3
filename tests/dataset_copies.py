"""Small copies of every on-disk layout, written as users unpack them. No licensed image: every picture is drawn here."""

from __future__ import annotations

import functools
import io
from pathlib import Path

import numpy as np
from PIL import Image

CHEST_NAMES = ["5B91F7409CCCE2.png", "DX.1.2.392.200036.9125.1.1.1.png", "A0.png", "B1.png", "C2.png", "D3.png"]
COLON_NAMES = [f"2019-06-11 01_00_5{i // 2}-lv1-1956-12720-11095-7901p00{79 + i}.png" for i in range(6)]
ENDO_NAMES = [f"13333_2021.11_000{i // 2}_5495{i}.png" for i in range(6)]
NAMES = {"chest": CHEST_NAMES, "colon": COLON_NAMES, "endo": ENDO_NAMES}


@functools.cache
def encoded(seed: int, kind: str, size: tuple[int, int] = (12, 10)) -> bytes:
    """A picture of its own for every seed."""
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def picture(path: Path, seed: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(seed, "JPEG" if path.suffix.lower() in (".jpg", ".jpeg") else "PNG"))
    return path


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding=encoding)
    return path


def isic(root: Path, train: int = 7, test: int = 7) -> Path:
    """One image per class and split at least; two training images show one lesion."""
    classes = ["MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC"]
    for part, first, count in (("Training", 24306, train), ("Validation", 34000, 7), ("Test", 34524, test)):
        lines = ["image," + ",".join(classes)]
        for i in range(count):
            name = f"ISIC_{first + i:07d}"
            picture(root / f"ISIC2018_Task3_{part}_Input" / f"{name}.jpg", first + i)
            lines.append(name + "," + ",".join("1.0" if k == i % 7 else "0.0" for k in range(7)))
        write(root / f"ISIC2018_Task3_{part}_GroundTruth" / f"ISIC2018_Task3_{part}_GroundTruth.csv", "\n".join(lines) + "\n")
    lesions = ["image,lesion_id,diagnosis_confirm_type"]
    lesions += [f"ISIC_{24306 + i:07d},HAM_{i // 2:07d},histopathology" for i in range(train)]
    write(root / "ISIC2018_Task3_Training_LesionGroupings.csv", "\n".join(lines and lesions) + "\n")
    write(root / "ISIC2018_Task3_Training_Input" / "LICENSE.txt", "not an image")
    return root


def aptos_mirror(root: Path) -> Path:
    seed = 0
    for file, folder, count in (("train_1.csv", "train", 10), ("valid.csv", "val", 5), ("test.csv", "test", 5)):
        lines = ["id_code,diagnosis"]
        for i in range(count):
            seed += 1
            name = f"{seed:012x}"
            picture(root / f"{folder}_images" / f"{folder}_images" / f"{name}.png", seed)
            lines.append(f"{name},{i % 5}")
        write(root / file, "\n".join(lines) + "\n")
    return root


def aptos_official(root: Path) -> Path:
    """All 3,662 rows, because the cut counts them; every image is the same small file."""
    lines, data = ["id_code,diagnosis"], encoded(0, "PNG")
    (root / "train_images").mkdir(parents=True)
    for i in range(3662):
        (root / "train_images" / f"{i:012x}.png").write_bytes(data)
        lines.append(f"{i:012x},{i % 5}")
    write(root / "train.csv", "\n".join(lines) + "\n")
    write(root / "test.csv", "id_code\nfff0\n")
    return root


def medfm_labels(task: str, i: int) -> list[int]:
    """0/1 of image i; the first of chest and endo has no finding at all."""
    if task == "colon":
        return [i % 2]
    return [int(i > 0 and (k + i) % 3 == 0) for k in range(19 if task == "chest" else 4)]


def medfm_line(task: str, i: int) -> str:
    labels = ("," if task == "chest" else " ").join(map(str, medfm_labels(task, i)))
    return f"{NAMES[task][i]} {labels}\n"


def medfm_csv(task: str, indices: list[int], labelled: bool = True) -> str:
    from riftcli.data.datasets.medfm import CHEST

    def cells(i: int) -> str:
        return ",".join(map(str, medfm_labels(task, i))) if labelled else "," * (len(medfm_labels(task, i)) - 1)

    names = NAMES[task]
    if task == "colon":
        rows = [f"{names[i].rpartition('p')[0]},{names[i]},{cells(i)}" for i in indices]
        return "slide_id,img_id,tumor\n" + "\n".join(rows) + "\n" + ",,\n" * 5  # blank tail, as in the original
    if task == "endo":
        rows = [f"{i},{names[i]},{names[i].rpartition('_')[0]},{cells(i)},stray" for i in indices]
        return ",img_id,study_id,ulcer,erosion,polyp,tumor,\n" + "\n".join(rows) + "\n"
    return "Unnamed: 0,img_id," + ",".join(CHEST) + "\n" + "".join(f"{i},{names[i]},{cells(i)}\n" for i in indices)


PUBLISHED = {"chest": "chestdr_published_19d.csv", "colon": "colonpath_published_2.csv", "endo": "Endo_published_4d.csv"}


def medfm_downloaded(root: Path, task: str) -> Path:
    """Layout A. Images 0, 1 are trainval; 2, 3 the open and 4, 5 the hidden part of the test set."""
    for i, name in enumerate(NAMES[task]):
        picture(root / ("MedFMC_train" if i < 4 else "MedFMC_val") / task / "images" / name, i)
    write(root / "MedFMC_train" / task / f"{task}_train.csv", medfm_csv(task, [0, 1, 2, 3]))
    write(root / "MedFMC_val" / task / f"{task}_val.csv", medfm_csv(task, [4, 5], labelled=False))
    annotation = root / "MedFMC_trainval_annotation"
    write(annotation / PUBLISHED[task], medfm_csv(task, list(range(6))))
    write(annotation / task / "trainval.txt", "".join(medfm_line(task, i) for i in (0, 1)))
    write(annotation / task / "test.txt", "".join(medfm_line(task, i) for i in (2, 3, 4, 5)))
    return root


def medfm_arranged(root: Path, task: str, published: bool = True) -> Path:
    """Layout B: all images of a task together, and lists."""
    for i, name in enumerate(NAMES[task]):
        picture(root / task / "images" / name, i)
    write(root / task / "trainval.txt", "".join(medfm_line(task, i) for i in (0, 1)))
    write(root / task / "test_WithLabel.txt", "".join(medfm_line(task, i) for i in (2, 3)))
    write(root / task / "test_WithoutLabel.txt", "".join(f"{NAMES[task][i]}\n" for i in (4, 5)))
    write(root / task / f"{task}_1-shot_train_exp1.txt", medfm_line(task, 1) * 2)
    if published:
        write(root / PUBLISHED[task], medfm_csv(task, list(range(6))))
    return root


def cub(root: Path) -> Path:
    """Three classes of two images; the lines of the files are in different orders."""
    base = root / "CUB_200_2011"
    images = []
    for label, bird in enumerate(["001.Black_footed_Albatross", "002.Laysan_Albatross", "003.Sooty_Albatross"], 1):
        for k in range(2):
            name = f"{bird}/{bird[4:]}_{k}.jpg"
            picture(base / "images" / name, 10 * label + k)
            images.append((len(images) + 1, name, label, k))
    write(base / "images.txt", "".join(f"{i} {name}\n" for i, name, _, _ in images))
    write(base / "image_class_labels.txt", "".join(f"{i} {label}\n" for i, _, label, _ in reversed(images)))
    write(base / "train_test_split.txt", "".join(f"{i} {flag}\n" for i, _, _, flag in images[3:] + images[:3]))
    write(base / "classes.txt", "1 001.Black_footed_Albatross\n2 002.Laysan_Albatross\n3 003.Sooty_Albatross\n")
    return root


WNIDS = ["n01440764", "n01443537", "n03995372"]


def imagenet(root: Path, flat: bool) -> Path:
    for label, wnid in enumerate(WNIDS):
        for k in range(2):
            picture(root / "train" / wnid / f"{wnid}_{k}.JPEG", 10 * label + k)
            number = 2 * label + k + 1
            name = f"ILSVRC2012_val_{number:08d}.JPEG"
            picture(root / "val" / name if flat else root / "val" / wnid / name, 100 + number)
    return root


def imagenet_devkit(root: Path) -> Path:
    """Numbers that are not the sorted order of the wnids, and a parent class behind them."""
    from scipy.io import savemat

    data = root / "ILSVRC2012_devkit_t12" / "data"
    data.mkdir(parents=True)
    kinds = [("ILSVRC2012_ID", "f8"), ("WNID", "O"), ("words", "O"), ("num_children", "f8")]
    rows = [(1, WNIDS[2], "pole", 0), (2, WNIDS[0], "tench", 0), (3, WNIDS[1], "goldfish", 0), (4, "n00001740", "entity", 3)]
    savemat(data / "meta.mat", {"synsets": np.array(rows, dtype=kinds)})
    write(data / "ILSVRC2012_validation_ground_truth.txt", "2\n2\n3\n3\n1\n1\n")
    return root


def cars(root: Path) -> Path:
    from scipy.io import savemat

    base = root / "stanford_cars"
    (base / "devkit").mkdir(parents=True)
    savemat(base / "devkit" / "cars_meta.mat", {"class_names": np.array(["AM General Hummer", "Acura RL"], dtype=object)})
    for split, file in (("train", "devkit/cars_train_annos.mat"), ("test", "cars_test_annos_withlabels.mat")):
        names = [f"0000{i}.jpg" for i in (1, 2)]
        for i, name in enumerate(names):
            picture(base / f"cars_{split}" / name, i + 10 * (split == "test"))
        rows = [(i + 1, name) for i, name in enumerate(names)]
        annotations = np.array(rows, dtype=[("class", "u1"), ("fname", "O")])
        savemat(base / file, {"annotations": annotations})
    return root


def pets(root: Path) -> Path:
    base = root / "oxford-iiit-pet"
    for split, first in (("trainval", 0), ("test", 2)):
        lines = []
        for label, breed in ((1, "Abyssinian"), (2, "american_bulldog")):
            for k in range(2):
                name = f"{breed}_{first + k}"
                picture(base / "images" / f"{name}.jpg", 10 * label + first + k)
                lines.append(f"{name} {label} 1 1\n")
        write(base / "annotations" / f"{split}.txt", "".join(lines))
    return root


def flickr(root: Path) -> Path:
    for i in range(3):
        picture(root / "Flicker8k_Dataset" / f"{i}.jpg", i)
    lines = [f"{i}.jpg#{k}\tCaption {k} of image {i} .\n" for i in range(3) for k in range(2)]
    write(root / "Flickr8k.token.txt", "".join(lines))
    write(root / "captions.txt", 'image,caption\n0.jpg,"A dog , running"\n1.jpg,A cat\n0.jpg,Another dog\n')
    write(root / "Flickr_8k.trainImages.txt", "0.jpg\n2.jpg\n")
    return root


def cc3m(root: Path) -> Path:
    write(
        root / "Train_GCC-training.tsv", "a dog\thttp://x.org/a/dog.jpg?w=1\na cat\thttp://x.org/cat\na cow\thttp://x.org/c.jpg\n"
    )
    picture(root / "images" / "dog.jpg", 1)
    picture(root / "images" / "00000" / "000000001.jpg", 2)
    return root
