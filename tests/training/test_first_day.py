"""What a person meets on the first day: no test split, a run that made it worse, leaks, wrong sizes; what is said and where."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from riftcli import recipe as recipes
from riftcli.errors import UsageError
from riftcli.training.optim import lr_factor, warmup_steps


def warnings_of(err: str) -> list[str]:
    return [line for line in err.splitlines() if line.startswith("warning: ")]


def test_without_a_test_split_the_report_is_on_validation_and_says_so(rift, tiny_recipe, write_recipe, read_json):
    tiny_recipe["data"]["test"] = None
    recipe = write_recipe(tiny_recipe)
    code, _, err = rift("finetune", "--recipe", recipe, "--out", "run")
    assert code == 0, err
    assert "data: digits, 128 train, 32 validation, 0 test, 10 classes" in err
    assert "data: no test split: the report is on validation, which also chooses the weights" in err
    assert "validation (there is no test split) of digits (32 images)" in err
    report = read_json("run/metrics.json")
    assert (report["data"]["split"], report["data"]["n"]) == ("val", 32)
    assert report["data"]["note"] == "there is no test split: these images also chose the weights, so the numbers are too good"
    assert report["metrics"]["acc"]["value"] == pytest.approx(report["validation"]["acc"])
    for command in (["eval", "--run", "run"], ["knn", "--run", "run", "--k", "3"], ["similarity", "--run", "run"]):
        code, out, err = rift(*command, "--json")
        assert code == 0, err
        found = json.loads(out)
        assert "data" not in found or (found["data"]["split"], found["data"]["note"]) == ("val", report["data"]["note"])
        assert all(row.get("split", "val") == "val" for row in found.get("rows", []))
    code, _, err = rift("report", "run")
    assert code == 0, err
    code, out, err = rift("finetune", "--recipe", recipe, "--set", "data.val=null", "--out", "none")
    assert code == 2
    assert err.strip() == (
        "error: data.test is null and there is no data.val: nothing would be measured; hold out a share, e.g. "
        "--set 'data.val={fraction: 0.2}', or cross-validate with --folds 5"
    )


def test_folds_need_no_test_split(rift, tiny_recipe, write_recipe, read_json):
    tiny_recipe["data"] |= {"test": None, "val": None}
    tiny_recipe["train"]["epochs"] = 1
    code, _, err = rift("finetune", "--recipe", write_recipe(tiny_recipe), "--folds", "2", "--out", "cv")
    assert code == 0, err
    report = read_json("cv/metrics.json")
    assert report["metrics"]["acc"]["values"] == report["cross_validation"]["acc"]["values"]
    assert "folds, on the held-out fold" in err
    assert "on the test split" not in err


def test_a_test_split_that_is_cut_is_the_same_for_every_seed(rift, tiny_recipe, write_recipe, read_json):
    tiny_recipe["data"]["test"] = {"fraction": 0.1}
    tiny_recipe["train"]["epochs"] = 1
    recipe = write_recipe(tiny_recipe)
    for seed in (0, 1):
        code, _, err = rift("finetune", "--recipe", recipe, "--seed", seed, "--out", f"s{seed}")
        assert code == 0, err
    one, other = read_json("s0/metrics.json"), read_json("s1/metrics.json")
    assert one["data"]["n"] == 130
    assert one["data"]["fingerprint"] == other["data"]["fingerprint"]
    code, out, err = rift("eval", "--run", "s0", "--json")
    assert json.loads(out)["data"]["fingerprint"] == one["data"]["fingerprint"]


@pytest.mark.page
def test_a_run_that_made_it_worse_says_so_everywhere(rift, tiny_recipe, write_recipe, read_json):
    tiny_recipe["optim"] = {"lr": 0.5, "clip_grad": None}
    tiny_recipe["regularizer"] = {"name": "none"}
    tiny_recipe["train"] |= {"on_collapse": "warn", "epochs": 1}
    code, _, err = rift("finetune", "--recipe", write_recipe(tiny_recipe), "--out", "run")
    assert code == 0, err
    report = read_json("run/metrics.json")
    before, after = report["validation_start"]["acc"], report["validation"]["acc"]
    assert after < before
    text = (
        f"training made it worse: validation acc was {before:.4f} before the first step and is {after:.4f} with the kept "
        "weights (epoch 1); try a lower optim.lr, or adapter.name linear, which leaves the backbone alone"
    )
    assert report["worse_than_start"] == text
    assert f"warning: {text}" in warnings_of(err)
    assert f"  WORSE THAN BEFORE TRAINING: {text}" in err
    collapse = [line for line in report["warnings"] if "the representation has" in line]
    assert len(collapse) == 1, "what the log warns of is in the report"
    page = Path("run/report.html").read_text()
    assert text in page
    assert "the representation has" in page


def test_a_run_that_got_better_has_no_warnings(rift, tiny_recipe, write_recipe, read_json):
    tiny_recipe["optim"]["lr"] = 1e-5
    code, _, err = rift("finetune", "--recipe", write_recipe(tiny_recipe), "--out", "run")
    report = read_json("run/metrics.json")
    assert (code, report["warnings"]) == (0, [])
    assert "worse_than_start" not in report
    assert report["validation"]["acc"] >= report["validation_start"]["acc"]


@pytest.mark.page
def test_known_leakage_is_refused_before_anything_is_built(rift, tiny_recipe, write_recipe, tmp_path, read_json):
    rows = ["image,label,patient,fold"]
    for i in range(60):
        pixels = np.random.default_rng(i).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"x{i}.png")
        fold = "train" if i < 50 or i == 55 else "test"
        rows.append(f"x{i}.png,{i // 2 % 2},p{i // 2},{fold}")
    (tmp_path / "labels.csv").write_text("\n".join(rows) + "\n")
    data = {"format": "csv_table", "root": str(tmp_path), "labels": "labels.csv", "split_column": "fold"}
    data |= {"label_column": "label", "group_columns": ["patient"]}
    tiny_recipe["data"] = {**data, "val": {"fraction": 0.2, "group": "patient"}}
    tiny_recipe["train"] |= {"epochs": 1, "batch_size": 8}
    recipe = write_recipe(tiny_recipe)
    code, _, err = rift("finetune", "--recipe", recipe, "--out", "run")
    assert code == 3
    assert err.startswith("error: group 'patient': 1 images of 'test' are of a patient with images in '")
    assert not (tmp_path / "run").exists()
    code, _, err = rift("data", "check", "--recipe", recipe)
    assert code == 3
    assert "error: group 'patient': 1 of them have images in" in err
    code, _, err = rift("finetune", "--recipe", recipe, "--set", "data.allow_overlap=true", "--out", "run")
    assert code == 0, err
    report = read_json("run/metrics.json")
    assert list(report["data"]["overlap"].values()) == [1]
    assert any("1 images of test are of a patient with images in" in line for line in report["warnings"])
    assert "1 images of test are of a patient with images in" in Path("run/report.html").read_text()
    tiny_recipe["data"]["val"] = {"fraction": 0.2}
    code, _, err = rift("finetune", "--recipe", write_recipe(tiny_recipe), "--out", "unnamed")
    assert code == 0, err
    assert any("data.val.group patient refuses that" in line for line in warnings_of(err))


def test_sizes_that_cut_pixels_off_are_refused(rift, tiny_recipe, write_recipe):
    tiny_recipe["model"]["image_size"] = 18
    recipe = write_recipe(tiny_recipe)
    code, _, err = rift("finetune", "--recipe", recipe, "--out", "run")
    name = tiny_recipe["model"]["name"]
    assert (code, err.splitlines()[-1]) == (
        4,
        f"error: model.image_size 18: {name} has patches of 4 px, so the last 2 px would be cut off; "
        "use 16 or 20, or fill up with --set 'model.args={dynamic_img_pad: true, dynamic_img_size: true}'",
    )
    code, _, err = rift(
        "finetune", "--recipe", recipe, "--set", "model.args={dynamic_img_pad: true, dynamic_img_size: true}", "--out", "run"
    )
    assert code == 0, err


def test_copies_of_training_images_in_the_test_split_are_named(rift, tiny_recipe, write_recipe, tmp_path, read_json):
    for i in range(40):
        pixels = np.random.default_rng(i).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        path = tmp_path / "pets" / ("train" if i < 32 else "test") / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    (tmp_path / "pets" / "test" / "a" / "other_name.png").write_bytes((tmp_path / "pets" / "train" / "a" / "0.png").read_bytes())
    tiny_recipe["data"] = {"format": "image_folder", "root": str(tmp_path / "pets")}
    tiny_recipe["train"] |= {"epochs": 1, "batch_size": 8}
    code, _, err = rift("finetune", "--recipe", write_recipe(tiny_recipe), "--out", "run")
    assert code == 0, err
    text = (
        "1 images of test are copies of images in train, under other names: the result is not on unseen images "
        "(`rift data check` lists them)"
    )
    assert f"warning: {text}" in warnings_of(err)
    assert text in read_json("run/metrics.json")["warnings"]


@pytest.mark.parametrize(
    ("total", "share", "least", "expected"),
    [(4, 0.05, 2, 2), (2, 0.05, 2, 1), (1, 0.05, 2, 1), (40, 0.05, 2, 2), (100, 0.05, 2, 5), (4, 0.0, 2, 0), (4, 0.05, 0, 1)],
)
def test_a_warm_up_is_at_least_two_steps(total, share, least, expected):
    assert warmup_steps(total, share, least) == expected


def test_the_first_steps_of_a_short_run_are_smaller():
    warm = warmup_steps(4, 0.05, 2)
    assert [lr_factor(step, 4, warm, "constant") for step in range(4)] == [0.5, 1, 1, 1]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "data: {format: csv_table, root: x, labels: {train: a.csv}, label_columns: [a, b], task: multilabel}",
            "objective.name: is for one label per image, and the data has several labels an image; use objective.name bce",
        ),
        (
            "data: {format: medfm, root: x, task: colon}\nobjective: {name: bce}",
            "objective.name: is for several labels an image, and the data has one label per image; "
            "use objective.name cross_entropy",
        ),
        ("data: {format: digits}\noptim: {name: admw}", "optim.name: timm has no optimizer 'admw' (did you mean 'adamw'?)"),
    ],
)
def test_what_can_be_known_without_data_is_found_at_once(text, expected):
    with pytest.raises(UsageError) as caught:
        recipes.parse(f"model: {{name: vit_tiny_patch16_224}}\n{text}\n", "r.yaml", [])
    assert expected in str(caught.value)


def test_the_optimizers_that_are_known_without_timm_are_timm_s():
    from timm.optim import list_optimizers

    from riftcli.recipe.optimizers import KNOWN, unknown_optimizer

    assert set(KNOWN) <= {str(name) for name in list_optimizers()}
    assert unknown_optimizer("adamw") is None
    assert unknown_optimizer("bnbadamw8bit") is None, "one that only timm itself knows"
    assert "adamw" in unknown_optimizer("admw")


def test_a_run_that_was_begun_with_leaks_goes_on_and_is_looked_at(rift, tiny_recipe, write_recipe, tmp_path, monkeypatch):
    """Of runs from before leaks were refused; nothing of theirs may become unreadable."""
    rows = ["image,label,patient,fold"]
    for i in range(60):
        pixels = np.random.default_rng(i).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"x{i}.png")
        rows.append(f"x{i}.png,{i // 2 % 2},p{i // 2},{'train' if i < 50 or i == 55 else 'test'}")
    (tmp_path / "labels.csv").write_text("\n".join(rows) + "\n")
    tiny_recipe["data"] = {
        "format": "csv_table", "root": str(tmp_path), "labels": "labels.csv", "split_column": "fold", "label_column": "label",
        "group_columns": ["patient"], "val": {"fraction": 0.2, "group": "patient"},
    }  # fmt: skip
    tiny_recipe["train"] |= {"epochs": 2, "batch_size": 8}
    from riftcli.training import data, loop

    original = loop.save

    def once(state):
        original(state)
        raise KeyboardInterrupt

    monkeypatch.setattr(data, "refuse_leaks", lambda leaks, allow: None)  # as it was
    monkeypatch.setattr(loop, "save", once)
    assert rift("finetune", "--recipe", write_recipe(tiny_recipe), "--out", "run")[0] == 130
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    code, _, err = rift("finetune", "--resume", "run")
    assert code == 0, err
    for command in (["eval", "--run", "run", "--split", "val"], ["wise", "run", "--alphas", "0:1:0.5"]):
        code, _, err = rift(*command)
        assert code == 0, err
