"""What evaluation commands look at: labels, groups, places."""

from __future__ import annotations

import shutil

import pytest
from evaluation_runs import make_folder, read, table
from PIL import Image

from riftcli import recipe as recipes


def test_the_same_run_twice_is_refused(rift, trained):
    code, _, err = rift("compare", trained / "full", trained / "full" / "s0")
    assert (code, err) == (2, f"error: {trained / 'full' / 's0'}: given twice; its numbers would count double\n")


def test_groups_of_one_name_in_two_places_are_not_seeds_of_each_other(trained, tmp_path):
    from riftcli.evaluation.candidates import open_runs

    for name in ("full", "rift"):
        shutil.copytree(trained / name, tmp_path / name / "x")
    found = open_runs([tmp_path / "full" / "x", tmp_path / "rift" / "x"], [])
    assert [candidate.group for candidate in found] == ["full/x", "full/x", "rift/x", "rift/x"]
    assert [candidate.label for candidate in found] == ["full/x/s0", "full/x/s1", "rift/x/s0", "rift/x/s1"]


def test_a_folder_that_is_not_there_names_the_nearest(rift, run):
    code, _, err = rift("knn", "--run", run.parent / "myrum")
    assert (code, err) == (2, f"error: {run.parent / 'myrum'}: no such folder (did you mean 'myrun'?)\n")
    code, _, err = rift("compare", "nowhere/at/all")
    assert (code, err) == (2, "error: nowhere/at/all: no such folder\n")


def test_a_folder_that_holds_runs_is_no_folder_of_seeds(rift, trained):
    code, _, err = rift("compare", trained)
    where = "neither a run folder nor a model folder (no recipe.resolved.yaml, no config.json)"
    assert (code, err) == (2, f"error: --run {trained}: {where}\n")


def test_two_models_and_two_sets_of_one_name_are_kept_apart(rift, trained, tmp_path):
    for i, name in enumerate(("full", "rift")):
        shutil.copytree(trained / name / "s0" / "model", tmp_path / f"k{i}" / "model")
        make_folder(tmp_path / f"p{i}")
    options = [word for i in range(2) for word in ("--model", f"local-dir:k{i}/model", "--data", f"imagefolder:p{i}/shapes")]
    code, out, err = rift("knn", *options, "--json")
    assert code == 0, err
    rows = read(out)["rows"]
    assert [(row["model"], row["data"]) for row in rows] == [
        ("model", "shapes-0"),
        ("model", "shapes-1"),
        ("model (2)", "shapes-0"),
        ("model (2)", "shapes-1"),
    ]


def test_other_questions_do_not_overwrite_the_answer(rift, run, trained, tmp_path):
    other = shutil.copytree(trained / "rift" / "s1", tmp_path / "other")
    asked = [
        ("similarity", "--bootstrap", 0, "--metrics", "rsa"),
        ("similarity", "--bootstrap", 0, "--metrics", "rsa", "--against", other),
        ("sharpness",),
        ("sharpness", "--rho", 0.1, "--adaptive"),
        ("knn", "--k", 3),
        ("knn", "--k", 3, "--vote", "majority"),
    ]
    for command, *options in asked:
        code, _, err = rift(command, "--run", run, *options)
        assert code == 0, err
    folders = sorted(
        str(path.parent.relative_to(run)) for path in run.glob("*/*/metrics.json") if path.parent.parent.name != "eval"
    )
    assert folders == [
        "knn/digits",
        "knn/digits-vote-majority",
        "sharpness/digits-test",
        "sharpness/digits-test-rho-0.1-adaptive-1",
        "similarity/digits-test",
        "similarity/digits-test-against-other",
    ]
    moved = run.rename(tmp_path / "renamed")  # what was measured goes with the run
    code, out, err = rift("compare", moved, "--json")
    cells = {row["column"]: row["mean"] for row in read(out)["rows"]}
    assert cells["rsa"] == float(table(moved / "similarity" / "digits-test")[0]["value"])
    assert cells["sharpness"] == float(table(moved / "sharpness" / "digits-test")[0]["sharpness"])
    assert cells["sharpness rho=0.1 adaptive=1"] != cells["sharpness"]
    assert {"knn k=3 digits", "knn k=3 digits vote=majority"} <= set(cells)


def test_methods_that_differ_in_more_than_the_seed_have_different_names():
    from riftcli.recipe.naming import method_names

    base = "model: {name: vit_tiny_patch16_224}\ndata: {format: digits}\n"
    changes = [[], ["train.seed=1"], ["optim.lr=1e-5"], ["adapter.name=lora"], ["adapter.name=lora", "adapter.rank=8"]]
    found = method_names([recipes.parse(base, "r.yaml", change) for change in changes])
    assert found == [
        "full (optim.lr 0.0001)",
        "full (optim.lr 0.0001)",
        "full (optim.lr 1e-05)",
        "lora (adapter.rank 4)",
        "lora (adapter.rank 8)",
    ]


def test_a_folder_of_weights_alone_is_not_evaluated_on_data_that_nobody_named(rift, run, tmp_path):
    alone = shutil.copytree(run / "model", tmp_path / "alone")
    message = "a model folder without its run; say what to evaluate on, e.g. --set data.format=image_folder"
    for command in ("eval", "sharpness"):
        code, _, err = rift(command, "--run", alone)
        assert (code, err) == (2, f"error: --run {alone}: {message}\n")


def test_a_multi_label_model_on_its_own_still_knows_that_it_is_one(rift, tiny_weights, tmp_path, write_recipe):
    (tmp_path / "pictures").mkdir()
    lines = ["file,a,b,c"]
    for i in range(24):
        Image.new("RGB", (16, 16), (10 * i, 255 - 10 * i, 99)).save(tmp_path / "pictures" / f"{i}.png")
        lines.append(f"{i}.png,{i % 2},{int(i > 11)},{int(i % 3 == 0)}")
    (tmp_path / "labels.csv").write_text("\n".join(lines) + "\n")
    recipe = {
        "model": {"name": f"local-dir:{tiny_weights}"},
        "data": {
            "format": "csv_table",
            "root": str(tmp_path),
            "labels": {"train": "labels.csv", "test": "labels.csv"},
            "images": ["pictures"],
            "image_column": "file",
            "label_columns": ["a", "b", "c"],
            "task": "multilabel",
            "val": {"from": "train", "fraction": 0.25},
            "allow_overlap": True,
        },
        "objective": {"name": "bce"},
        "train": {"epochs": 1, "batch_size": 9, "workers": 0},
        "eval": {"metrics": ["map", "cka"], "best": "map"},
    }
    code, _, err = rift("finetune", "--recipe", write_recipe(recipe), "--out", "multi")
    assert code == 0, err
    for command in (
        ["similarity", "--run", "multi", "--map", "--bootstrap", "0"],
        ["sharpness", "--run", "multi"],
        ["attention", "--run", "multi", "--image", "pictures/3.png"],
        ["compare", "multi"],
        ["report", "multi", "--evaluate"],
    ):
        code, _, err = rift(*command)
        assert code == 0, err
    code, _, err = rift("knn", "--run", "multi")
    assert code == 3
    assert "kNN needs one label per image, and this data is multilabel" in err
    shutil.copytree(tmp_path / "multi" / "model", tmp_path / "alone")
    answers = []
    for model in ("multi", "alone"):
        code, out, err = rift("predict", model, "pictures", "--json")
        assert code == 0, err
        answers.append(read(out)["rows"])
    assert answers[0] == answers[1]
    row = answers[0][0]
    assert row["class"] == "|".join(name for name, p in row["probabilities"].items() if p > 0.5)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["sharpness", "--rho", "nan"], "--rho nan: must be above 0"),
        (["knn", "--temperature", "inf"], "--temperature inf: must be above 0"),
        (["attention", "--block", "99"], "--block 99: the model has 2 blocks, from 0, or negative from the end"),
        (["knn", "--out", "taken"], "--out taken: exists and is not a folder"),
        (
            ["similarity", "--against", "{run}", "--set", "model.image_size=32"],
            "--set model.image_size=32: --against {run} is a folder of weights, which has its own model",
        ),
    ],
)
def test_wrong_options_are_told_before_the_work(rift, run, tmp_path, line, message):
    (tmp_path / "taken").write_text("")
    command, *options = [word.format(run=run) for word in line]
    code, _, err = rift(command, "--run", run, *options)
    assert (code, err.splitlines()[-1]) == (2, f"error: {message.format(run=run)}")
