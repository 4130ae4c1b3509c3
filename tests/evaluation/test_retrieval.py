"""rift align and rift retrieval on real finished runs."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from evaluation_runs import features, read, table

import riftcli
import riftcli.errors
from riftcli.functional.ranking import ranked
from riftcli.functional.rotations import orthogonality_distance
from riftcli.training.feature_maps import MapOptions, fit_map


def cells(report: dict) -> dict[tuple, dict]:
    return {(row["through"], row["queries"], row["gallery"]): row for row in report["rows"]}


def test_retrieval_scores_every_pair_of_old_and_new(rift, run):
    code, out, err = rift("retrieval", "--run", run, "--places", "1,3", "--backfill", "--json")
    assert code == 0, err
    report = read(out)
    found = cells(report)
    assert list(found) == [(None, "old", "old"), (None, "new", "new"), (None, "new", "old")]
    rows, labels = features(run, "test", 60)
    new, targets = torch.from_numpy(rows).double(), torch.from_numpy(labels)
    expected = ranked(new, new, targets, targets, torch.arange(60), (1, 3)).means((1, 3))
    assert {key: found[None, "new", "new"][key] for key in expected} == {
        k: pytest.approx(v, abs=1e-6) for k, v in expected.items()
    }
    crossed = found[None, "new", "old"]
    difference = crossed["cmc_1"] - found[None, "old", "old"]["cmc_1"]
    assert crossed["low"] <= difference <= crossed["high"] and crossed["compatible"] == (difference > 0)
    assert f"myrun on digits: new queries, old gallery: CMC-1 {crossed['cmc_1']:.4f}" in err
    curve = [row for row in report["backfill"] if row["order"] == "farthest"]
    assert curve[0]["cmc_1"] == pytest.approx(crossed["cmc_1"]) and curve[-1]["cmc_1"] == found[None, "new", "new"]["cmc_1"]
    assert curve[0]["cmc_1_area"] == pytest.approx(np.trapezoid([row["cmc_1"] for row in curve], dx=0.1))
    assert len(table(run / "retrieval" / "digits-test")) == 3
    assert (run / "retrieval" / "digits-test" / "retrieval.png").stat().st_size > 5000
    code, out, err = rift("retrieval", "--run", run, "--gallery", "train", "--json")
    assert code == 0, err
    assert {row["gallery_n"] for row in read(out)["rows"]} == {128}, "what validation left of 160"
    assert (run / "retrieval" / "digits-test-gallery_split-train").is_dir()


def test_the_q_of_a_rift_run_is_a_map_too(rift, run, trained, tmp_path):
    from safetensors.torch import load_file

    code, _, err = rift("align", "pretrained", run, "--map", "rift")
    assert code == 2 and "myrun: learned no Q" in err
    run = shutil.copytree(trained / "rift" / "s0", tmp_path / "rotated")
    code, _, err = rift("align", "pretrained", run, "--map", "rift", "--out", tmp_path / "q")
    assert code == 0, err
    weight = load_file(sorted(run.glob("last/step-*/penalty.safetensors"))[-1])["rotation"].double()
    skew, eye = weight - weight.T, torch.eye(len(weight), dtype=torch.float64)
    q = torch.linalg.solve(eye + skew, eye - skew)
    rows = torch.randn(3, len(q), generator=torch.Generator().manual_seed(0))
    expected = torch.nn.functional.normalize(rows.double(), dim=1) @ q.T
    torch.testing.assert_close(riftcli.load_map(tmp_path / "q").to_old(rows).double(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["lambda", "procrustes", "slerp"])
def test_a_map_is_one_file_that_retrieval_and_python_read(rift, run, tmp_path, kind):
    place = tmp_path / "maps" / kind
    code, out, err = rift("align", "pretrained", run, "--map", kind, "--epochs", 20, "--out", place, "--json")
    assert code == 0, err
    report = read(out)
    assert [row["split"] for row in report["rows"]] == ["train", "test"]
    assert report["rows"][0]["cosine"] > report["rows"][0]["cosine_before"]
    about = json.loads((place / "run.json").read_text())
    assert (about["schema"], about["status"]) == ("rift.run/1", "completed") and about["env"]["riftcli"] and about["command"]
    found = riftcli.load_map(place)
    assert found.about["old"]["label"].startswith("pretrained") and found.about["n"] == 128 and found.about["data"] == "digits"
    rows, _ = features(run, "test", 60)
    code, out, err = rift("retrieval", "--run", run, "--map", place, "--json")
    assert code == 0, err
    pairs = [pair for pair in cells(read(out)) if pair[0] == kind]
    closed = [(kind, "B(new)", "old"), (kind, "B(new)", "B(new)")]
    if kind == "lambda":
        assert pairs == [*closed, (kind, "F(old)", "F(old)"), (kind, "B(new)", "F(old)")]
        mapped = found.to_old(torch.from_numpy(rows))
        assert mapped.shape == rows.shape and [h["epoch"] for h in report["history"]] == list(range(1, 21))
    else:
        assert pairs == closed
        with pytest.raises(riftcli.errors.ModelError, match="no way from old to new"):
            found.to_new(torch.from_numpy(rows))
    if kind == "procrustes":
        assert cells(read(out))[kind, "B(new)", "B(new)"]["cmc_1"] == cells(read(out))[None, "new", "new"]["cmc_1"]


def test_names_of_maps_are_told_apart(tmp_path):
    from riftcli.commands.retrieval import names_of_maps

    for place in ("a/full/lambda", "b/full/lambda", "b/rift/lambda"):
        (tmp_path / place).mkdir(parents=True)
    (tmp_path / "own.safetensors").touch()
    paths = [tmp_path / "a/full/lambda", tmp_path / "b/full/lambda" / "map.safetensors", tmp_path / "b/rift/lambda"]
    assert names_of_maps(paths) == ["a/full/lambda", "b/full/lambda", "rift/lambda"]
    assert names_of_maps([paths[0], tmp_path / "own.safetensors"]) == ["lambda", "own"]


def test_two_runs_of_one_name_and_a_gallery_that_holds_the_queries(rift, trained, tmp_path):
    one, other = (shutil.copytree(trained / name / "s0", tmp_path / name / "same") for name in ("full", "rift"))
    code, out, err = rift("retrieval", "--run", one, "--against", other, "--json")
    assert code == 0, err
    report = read(out)
    assert len(report["models"]) == 2 and len({row["reference"] for row in report["rows"]} | {report["rows"][0]["model"]}) == 2
    found = cells(report)
    assert found[None, "old", "old"]["map"] != found[None, "new", "new"]["map"]
    code, out, err = rift("retrieval", "--run", one, "--gallery", "train+test", "--json")
    assert code == 0, err
    assert cells(read(out))[None, "new", "new"]["cmc_1"] < 1, "no query may find itself"


def test_a_map_of_other_models_is_used_with_a_warning(rift, trained, tmp_path):
    one, other = (shutil.copytree(trained / "full" / seed, tmp_path / seed) for seed in ("s0", "s1"))
    assert rift("align", "pretrained", one, "--map", "procrustes")[0] == 0
    code, out, err = rift("retrieval", "--run", other, "--map", one / "align" / "procrustes", "--json")
    assert code == 0 and "the map procrustes was made for new" in err, err
    (made_for,) = {row["map_made_for"] for row in read(out)["rows"] if row["through"]}
    assert made_for.startswith("new ") and made_for.endswith("s0")


def data(seed: int = 0, width: int = 8, other: int = 8) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Old features in classes, and new ones that are the old ones turned, stretched and a little noisy."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(200) % 5
    old = torch.randn(5, width, generator=generator)[labels] + 0.3 * torch.randn(200, width, generator=generator)
    turn = torch.linalg.qr(torch.randn(max(width, other), max(width, other), generator=generator)).Q
    turn[:, 0] *= torch.linalg.det(turn)  # a rotation: the exponential of a skew matrix reaches no reflection
    turn = turn[:width, :other]
    return old, old @ turn * torch.linspace(0.7, 1.4, other) + 0.05 * torch.randn(200, other, generator=generator), labels


def error(fitted, old: torch.Tensor, new: torch.Tensor) -> float:
    unit = torch.nn.functional.normalize(fitted.map.old(old), dim=1)
    return float((torch.nn.functional.normalize(fitted.map.to_old(new, old), dim=1) - unit).square().sum(1).mean())


def test_freer_maps_come_nearer_and_the_threshold_holds():
    old, new, labels = data()
    plain = {"epochs": 100, "batch_size": 50, "lr": 3e-2, "weights": (0.0, 1.0, 0.0)}
    fits = {kind: fit_map(old, new, labels, MapOptions(kind, **plain)) for kind in ("orthogonal", "soft", "affine", "procrustes")}
    fits["lambda"] = fit_map(old, new, labels, MapOptions("lambda", threshold=1.0, **plain))
    errors = {kind: error(fitted, old, new) for kind, fitted in fits.items()}
    assert errors["affine"] < errors["lambda"] < errors["orthogonal"]
    assert errors["orthogonal"] == pytest.approx(errors["procrustes"], rel=0.05), "the closed form is where it ends"
    distances = {kind: float(orthogonality_distance(f.map.backward[0].weight.detach())) for kind, f in fits.items()}
    assert max(distances["orthogonal"], distances["procrustes"]) < 1e-4 and distances["soft"] < 0.05
    assert 0.2 < distances["lambda"] < 1.0 < distances["affine"]
    again = fit_map(old, new, labels, MapOptions("affine", **plain))
    assert torch.equal(again.map.backward[0].weight, fits["affine"].map.backward[0].weight)


@pytest.mark.parametrize(("width", "other"), [(6, 8), (8, 6)])
@pytest.mark.parametrize("kind", ["lambda", "procrustes"])
def test_spaces_of_different_width(tmp_path, kind, width, other):
    old, new, labels = data(width=width, other=other)
    fitted = fit_map(old, new, labels, MapOptions(kind, epochs=30, layers=2))
    place = fitted.map.save(tmp_path / "map.safetensors")
    found = riftcli.load_map(place)
    assert found.width == (min if kind == "lambda" else max)(width, other)
    assert torch.equal(found.to_old(new), fitted.map.to_old(new)) and found.to_old(new).shape == found.old(old).shape
    if kind == "lambda":
        assert torch.equal(found.to_new(old), fitted.map.to_new(old)) and found.to_new(old).shape == found.to_old(new).shape


def test_slerp_takes_the_best_share_of_both_queries():
    old, new, labels = data()
    noisy = old + 2 * torch.randn(old.shape, generator=torch.Generator().manual_seed(5))
    fitted = fit_map(noisy, new, labels, MapOptions("slerp"))
    own = torch.arange(len(old))
    scores = {}
    for share in (0.0, fitted.map.share, 1.0):
        fitted.map.share = share
        scores[share] = ranked(fitted.map.to_old(new, noisy), fitted.map.old(noisy), labels, labels, own).means((1,))["cmc_1"]
    assert max(scores.values()) == list(scores.values())[1]


@pytest.mark.parametrize(
    ("line", "code", "part"),
    [
        (["align", "pretrained", "{run}", "--map", "lambda", "--lambda", "big"], 2, "--lambda big: expected numbers"),
        (["align", "pretrained", "{run}", "--weights", "1,2"], 2, "--weights: three numbers, of L_F, L_B and L_C"),
        (["align", "{run}", "{run}"], 2, "are the same model: there is nothing to map"),
        (["align", "pretrained", "vit_tiny_patch16_224"], 2, "does not say what it was finetuned from"),
        (["retrieval", "--run", "{run}", "--map", "{tmp}/none"], 4, "no such map; rift align writes one"),
        (["retrieval", "--run", "{run}", "--map", "{tmp}/other.safetensors"], 4, "not a map of riftcli"),
        (
            ["retrieval", "--run", "{run}", "--map", "{tmp}/wide.safetensors"],
            2,
            "from 24 to 16 dimensions, and these models have",
        ),
        (["align", "pretrained", "{run}", "--temperature", "0"], 2, "--temperature 0: must be above 0"),
        (["align", "pretrained", "{run}", "--lr", "nan"], 2, "--lr nan: must be above 0"),
        (["align", "pretrained", "{run}", "--set", "optim.lr=1"], 2, "evaluation can change data.*, input.*, eval.*"),
        (["retrieval", "--run", "{run}", "--against", "{run}"], 2, "is the new model itself; name another old one"),
        (["retrieval", "--run", "{run}", "--map", "{tmp}/wide.safetensors", "--map", "{tmp}/wide.safetensors"], 2, "given twice"),
        (["retrieval", "--run", "{run}", "--places", "0"], 2, "--places 0: 1 or more"),
        (["retrieval", "--run", "{run}", "--gallery", "nosuch"], 3, "no split 'nosuch'"),
    ],
)
def test_bad_input_gets_one_line(rift, run, tmp_path, line, code, part):
    from safetensors.torch import save_file

    save_file({"a": torch.ones(1)}, tmp_path / "other.safetensors")
    old, new, labels = data(width=16, other=24)
    fit_map(old, new, labels, MapOptions("procrustes")).map.save(tmp_path / "wide.safetensors")
    got, _, err = rift(*(word.format(run=run, tmp=tmp_path) for word in line))
    errors = [text for text in err.splitlines() if text.startswith("error:")]
    assert got == code and len(errors) == 1 and part in errors[0], err
    assert json.loads((run / "run.json").read_text())["status"] == "completed"
