"""rift knn on real finished runs, against scikit-learn and the slow way."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from evaluation_runs import features, make_folder, read, table
from safetensors.torch import load_file
from sklearn.neighbors import KNeighborsClassifier


def test_knn_answers_as_scikit_learn_does(rift, run):
    code, out, err = rift("knn", "--run", run, "--k", "1,5", "--json")
    assert code == 0, err
    report = read(out)
    assert (report["schema"], report["command"]) == ("rift.table/1", "knn")
    bank, labels = features(run, "train", 160)
    queries, targets = features(run, "test", 60)
    for row in [row for row in report["rows"] if row["model"] == "myrun"]:
        reference = KNeighborsClassifier(row["k"], metric="cosine", weights=lambda d: np.exp((1 - d) / 0.07)).fit(bank, labels)
        assert row["acc"] == pytest.approx(reference.score(queries, targets))
        assert (row["n"], row["bank_n"], row["data"]) == (60, 160, "digits")
    assert [row["model"] for row in report["rows"]] == ["pretrained vit"] * 2 + ["myrun"] * 2
    assert [row["acc"] for row in report["rows"]] == [float(row["acc"]) for row in table(run / "knn" / "digits")]


def test_knn_of_several_models_on_several_sets_gives_one_table(rift, trained, tmp_path, few):
    folders = [trained / "full", trained / "rift"]
    runs = [word for folder in folders for word in ("--run", shutil.copytree(folder, tmp_path / folder.name))]
    code, _, err = rift("knn", *runs, "--data", few, "--data", make_folder(tmp_path), "--out", "all", "--k", "3")
    assert code == 0, err
    rows = table(tmp_path / "all")
    assert {row["group"] for row in rows} == {"pretrained vit", "full", "rift"}
    assert {row["data"] for row in rows} == {"digits", "shapes"}
    assert len(rows) == (1 + 2 + 2) * 2
    header = next(line for line in err.splitlines() if line.startswith("model"))
    assert header.split() == ["model", "digits", "shapes", "mean"]
    line = next(line for line in err.splitlines() if line.startswith("full "))
    seeds = [float(row["acc"]) for row in rows if (row["group"], row["data"]) == ("full", "digits")]
    assert f"{np.mean(seeds):.4f} +- {np.std(seeds, ddof=1):.4f}" in line
    assert {row["model"] for row in table(tmp_path / "full" / "s1" / "knn" / "shapes")} == {"pretrained vit", "full/s1"}


def test_few_shot_and_probe(rift, run, tmp_path):
    code, out, err = rift(
        "knn",
        "--run",
        run,
        "--data",
        make_folder(tmp_path),
        "--few-shot",
        2,
        "--draws",
        3,
        "--probe",
        "--no-pretrained",
        "--json",
    )
    assert code == 0, err
    rows = read(out)["rows"]
    assert [(row["classifier"], row["k"], row["shots"], row["bank_n"]) for row in rows] == [
        ("knn", 20, 2, 4),
        ("probe", None, 2, 4),
    ]
    assert [row["acc"] for row in rows] == [1.0, 1.0]
    assert [row["std"] for row in rows] == [0.0, 0.0]


def test_knn_of_a_timm_model_that_we_did_not_train(rift, tiny_weights, tmp_path):
    code, out, err = rift("knn", "--model", f"local-dir:{tiny_weights}", "--data", make_folder(tmp_path), "--json")
    assert code == 0, err
    report = read(out)
    assert [row["acc"] for row in report["rows"]] == [1.0]
    assert report["models"][0]["method"]["adapter"] == "none"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--k", "five"], "--k five: expected numbers, e.g. 20 or 10,20,100"),
        (["--k", "0"], "--k 0: numbers of neighbours are 1 or more"),
        (["--temperature", "0"], "--temperature 0: must be above 0"),
        (
            ["--data", "imagefolder:/nowhere"],
            "/nowhere: no such data folder (looked in {cwd}); set root, e.g. --set data.root=/path/to/data",
        ),
        (
            ["--set", "optim.lr=1"],
            "--set optim.lr=1: evaluation can change data.*, input.*, eval.*, model.weights and train.workers, not the run",
        ),
    ],
)
def test_knn_refuses(rift, run, tmp_path, options, message):
    code, _, err = rift("knn", "--run", run, *options)
    assert code in (2, 3)
    assert err.splitlines()[-1] == f"error: {message.format(cwd=tmp_path)}"


def test_a_model_without_data_says_what_to_give(rift, tiny_weights):
    code, _, err = rift("knn", "--model", f"local-dir:{tiny_weights}")
    assert (code, err) == (
        2,
        "error: a model without its run does not say what to look at: give --data RECIPE or --data imagefolder:PATH\n",
    )


def test_cached_features_are_found_again_and_only_for_the_same_content(rift, run, tmp_path):
    def acc(*options) -> float:
        code, out, err = rift("knn", "--run", run, "--no-pretrained", "--json", "--set", "eval.cache=cache", *options)
        assert code == 0, err
        return read(out)["rows"][0]["acc"]

    first = acc()
    files = sorted((tmp_path / "cache").glob("*.safetensors"))
    assert len(files) == 2  # bank and queries
    stamps = [file.stat().st_mtime_ns for file in files]
    assert acc() == first
    assert [file.stat().st_mtime_ns for file in files] == stamps
    acc("--set", "data.test.limit=50")
    assert len(list((tmp_path / "cache").glob("*.safetensors"))) == 3  # other samples, another table
    acc("--set", "eval.batch_size=8")
    assert len(list((tmp_path / "cache").glob("*.safetensors"))) == 5
    weights = run / "model" / "model.safetensors"
    tensors = load_file(weights)
    tensors["blocks.0.mlp.fc1.weight"] += 0.01
    from safetensors.torch import save_file

    save_file(tensors, weights, metadata={"format": "pt"})
    (run / "model" / "manifest.json").unlink()
    changed = acc()
    assert len(list((tmp_path / "cache").glob("*.safetensors"))) == 7  # other weights
    for file in (tmp_path / "cache").glob("*.safetensors"):  # a flipped byte is noticed: the table is computed again
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
    assert acc() == changed
    assert all(file.with_suffix(".sha256").read_text() for file in (tmp_path / "cache").glob("*.safetensors"))
