"""rift similarity on real finished runs."""

from __future__ import annotations

import shutil

import pytest
from evaluation_runs import read


def test_similarity_of_a_run_to_its_pretrained_model(rift, run, read_json):
    code, out, err = rift("similarity", "--run", run, "--metrics", "all", "--layers", "all", "--map", "--bootstrap", 8, "--json")
    assert code == 0, err
    report = read(out)
    rows = {row["metric"]: row for row in report["rows"]}
    kept = read_json(run / "metrics.json")["metrics"]["cka"]["value"]
    assert rows["cka"]["value"] == pytest.approx(kept, abs=1e-6)
    assert rows["cka"]["low"] < kept < rows["cka"]["high"]
    assert {row["reference"] for row in report["rows"]} == {"pretrained vit"}
    corner = next(c for c in report["layers"] if (c["reference_layer"], c["layer"]) == ("head", "head"))
    assert corner["cka"] == pytest.approx(kept, abs=1e-6)
    assert len(report["layers"]) == 3 * 3
    assert len(report["map"]) == 2 * 60
    folder = run / "similarity" / "digits-test"
    assert {path.name for path in folder.iterdir()} == {"metrics.json", "table.csv", "layers.csv", "layers.png", "map.csv"}


def test_a_model_is_as_similar_to_itself_as_can_be(rift, trained, tmp_path):
    one = shutil.copytree(trained / "lora", tmp_path / "lora")
    code, out, err = rift("similarity", "--run", one, "--against", one, "--metrics", "all", "--bootstrap", 0, "--json")
    assert code == 0, err
    for row in read(out)["rows"]:
        zero = row["metric"] in ("procrustes", "centre_distance")
        assert row["value"] == pytest.approx(0 if zero else 1, abs=1e-5), row["metric"]
        assert row["low"] is None


def test_two_timm_models(rift, tiny_weights, few):
    name = f"local-dir:{tiny_weights}"
    code, out, err = rift(
        "similarity", "--model", name, "--against", name, "--data", few, "--metrics", "cka", "--bootstrap", 0, "--json"
    )
    assert code == 0, err
    assert read(out)["rows"][0]["value"] == pytest.approx(1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--metrics", "ckaa"], "--metrics ckaa: no such similarity (did you mean 'cka'?); one of: cka, cka_debiased, "),
        (["--split", "vall"], "digits: no split 'vall'; it has: train, test"),
    ],
)
def test_similarity_refuses(rift, run, options, message):
    code, _, err = rift("similarity", "--run", run, *options)
    assert code in (2, 3)
    assert err.startswith(f"error: {message}"), err
