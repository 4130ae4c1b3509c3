"""The medical recipes from the zip to the report, on fixture-sized copies: data check, finetune, eval."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from dataset_copies import aptos_mirror, isic, medfm_downloaded, picture

from riftcli import recipe

SETS = ["isic", "aptos", "medfm_chest", "medfm_colon", "medfm_endo"]
METHODS = ["full", "linear", "scratch", "full_rsc", "full_rift"]


@pytest.fixture
def small(tiny_weights):
    """Overrides that make a shipped recipe fit a fixture: a tiny ViT, one epoch."""
    values = [
        f"model.name=local-dir:{tiny_weights}",
        "model.image_size=null",
        "train.epochs=1",
        "train.batch_size=16",
        "train.workers=0",
    ]
    return [word for value in values for word in ("--set", value)]


def test_isic_full_rift(rift, small, tmp_path, read_json):
    root = isic(tmp_path / "isic2018", train=56, test=14)
    source = ["--recipe", "isic_full_rift.yaml", "--set", f"data.root={root}"]
    code, _, err = rift("data", "check", *source, "--html", "check.html")
    assert code == 0, err
    assert Path("check.html").is_file()
    cache = ["--set", "input.cache=cache"]
    code, _, err = rift("finetune", *source, *small, *cache, "--out", "run")
    assert code == 0, err
    assert "decoded images with a shorter side of" in err
    report = read_json("run/metrics.json")
    assert report["data"]["name"] == "isic2018"
    assert report["data"]["classes"] == ["MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC"]
    assert report["model"]["method"]["regularizer"] == "rift"
    assert set(report["metrics"]) == {"acc", "bacc", "f1", "ece", "cka", "cka_debiased"}
    lesions = report["training_data"]["n"]
    assert lesions % 2 == 0 and 44 <= lesions <= 54, "whole lesions of two images"
    code, out, err = rift("eval", "--run", "run", "--metrics", "acc,cka", "--json")
    assert code == 0, err
    again = json.loads(out)
    assert again["metrics"]["acc"]["value"] == report["metrics"]["acc"]["value"]
    assert again["metrics"]["cka"]["value"] == pytest.approx(report["metrics"]["cka"]["value"], abs=1e-6)
    code, out, _ = rift("eval", "--run", "run", "--metrics", "acc,cka", "--json", "--set", "input.cache=null")
    assert json.loads(out)["metrics"] == again["metrics"], "the store changes no pixel"
    code, out, _ = rift("eval", "--run", "run", "--metrics", "acc", "--split", "val", "--json")
    assert json.loads(out)["metrics"]["acc"]["value"] == report["validation"]["acc"]


def test_the_papers_medfm_split_says_its_overlap_in_every_report(rift, small, tmp_path, read_json):
    root = medfm_downloaded(tmp_path / "medfm", "endo")
    settings = [
        "--set",
        f"data.root={root}",
        "--set",
        "data.protocol=paper",
        "--set",
        "data.val=null",
        "--set",
        "train.batch_size=2",
    ]
    arguments = ["--recipe", "medfm_endo_full_rift", *small, *settings, "--out", "run"]
    code, _, err = rift("finetune", *arguments)
    assert code == 3
    assert err.splitlines()[-1].startswith("error: splits 'train' and 'test' share 2 samples (e.g. 13333_2021.11_0001_54952.png)")
    code, _, err = rift("finetune", *arguments, "--set", "data.allow_overlap=true")
    assert code == 0, err
    assert "warning: data.allow_overlap: train and test share 2 samples; the report says so" in err
    assert read_json("run/metrics.json")["data"]["overlap"] == {"train/test": 2}
    _, out, _ = rift("eval", "--run", "run", "--metrics", "map", "--json")
    assert json.loads(out)["data"]["overlap"] == {"train/test": 2}


def test_skipped_images_are_in_every_report(rift, small, tmp_path, read_json):
    root = aptos_mirror(tmp_path / "aptos")
    (root / "test_images" / "test_images" / f"{17:012x}.png").write_bytes(b"")
    settings = ["--set", f"data.root={root}", "--set", "train.batch_size=8", "--set", "input.on_bad_image=skip"]
    code, _, err = rift("finetune", "--recipe", "aptos_full", *small, *settings, "--out", "run", "--set", "input.max_bad=0.3")
    assert code == 0, err
    report = read_json("run/metrics.json")
    assert report["data"]["n"] == 4
    assert report["data"]["skipped"] == {"test": {"n": 1, "ids": [f"{17:012x}"]}}
    _, out, _ = rift("eval", "--run", "run", "--metrics", "acc", "--json")
    assert json.loads(out)["data"]["skipped"] == report["data"]["skipped"]


def test_a_dry_run_keeps_no_images(rift, small, tmp_path):
    root = aptos_mirror(tmp_path / "aptos")
    settings = ["--set", f"data.root={root}", "--set", "train.batch_size=8", "--set", "input.cache=kept"]
    code, out, err = rift("finetune", "--recipe", "aptos_full", *small, *settings, "--dry-run")
    assert code == 0, err
    assert out.splitlines()[-1].endswith("nothing was written")
    assert not Path("kept").exists()


def test_resume_refuses_changed_data(rift, small, tmp_path):
    root = aptos_mirror(tmp_path / "aptos")
    settings = ["--set", f"data.root={root}", "--set", "train.batch_size=8", "--set", "train.epochs=2"]
    code, _, err = rift("finetune", "--recipe", "aptos_full", *small, *settings, "--out", "run")
    assert code == 0, err
    state = json.loads(Path("run/run.json").read_text())
    Path("run/run.json").write_text(json.dumps({**state, "status": "interrupted"}))
    table = root / "train_1.csv"
    table.write_text(table.read_text().replace(",4", ",3", 1))
    code, _, err = rift("finetune", "--resume", "run")
    assert (code, err.splitlines()[-1]) == (
        3,
        "error: --resume run: split 'train' has other samples or labels than when the run started (10 now); put the data back as "
        "it was, or start a new run",
    )


def test_a_run_that_may_lack_classes_can_be_evaluated(rift, small, tmp_path):
    for split, labels in (("train", "abc"), ("test", "bc")):
        for label in labels:
            for i in range(6):
                picture(tmp_path / "d" / split / label / f"{i}.png", ord(label) * 10 + i + 100 * (split == "test"))
    values = [f"data.root={tmp_path / 'd'}", "data.format=image_folder", "data.val=null", "train.batch_size=8"]
    settings = [word for value in values for word in ("--set", value)]
    arguments = ["--recipe", "aptos_full", *small, *settings, "--set", "data.allow_missing_classes=true", "--out", "run"]
    code, _, err = rift("finetune", *arguments)
    assert code == 0, err
    code, out, err = rift("eval", "--run", "run", "--metrics", "acc", "--json")
    assert code == 0, err
    assert json.loads(out)["metrics"] == {"acc": json.loads(Path("run/metrics.json").read_text())["metrics"]["acc"]}


@pytest.mark.parametrize("name", SETS)
def test_sister_recipes_differ_in_their_method_only(name):
    sisters = {method: yaml.safe_load(recipe.read(recipe.find(f"{name}_{method}"))) for method in METHODS}
    first = sisters["full"]
    for method, own in sisters.items():
        differ = {key for key in first | own if first.get(key) != own.get(key)}
        allowed = {
            "full": set(),
            "linear": {"adapter", "augment", "optim"},
            "scratch": {"model", "train"},
            "full_rsc": {"regularizer"},
            "full_rift": {"regularizer"},
        }[method]
        assert differ == allowed, method
        assert {**own["train"], "head_init": None} == {**first["train"], "head_init": None}
        text = recipe.read(recipe.find(f"{name}_{method}"))
        assert "Table 1 of the RIFT paper" in text and "We have not measured it" in text
        checked = recipe.load(f"{name}_{method}")
        assert (checked.train.batch_size, checked.train.epochs, checked.model.image_size) == (128, 50, 224)
