"""The toy experiments, small: what they claim holds."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).resolve().parents[1] / "experiments"


@pytest.fixture
def experiment(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(FOLDER), *sys.path])
    return importlib.import_module


def written(folder: Path, name: str) -> dict:
    assert (folder / f"{name}.png").stat().st_size > 5000
    return json.loads((folder / f"{name}.json").read_text())


def test_a_rotation_of_the_last_features_alone_keeps_everything(experiment, tmp_path):
    experiment("layerwise_rotations").run(tmp_path, seeds=2, depth=3)
    for own in written(tmp_path, "layerwise_rotations")["networks"].values():
        assert own["0"]["cka"]["mean"] == pytest.approx(1) and own["last"]["cka"]["mean"] == pytest.approx(1)
        assert own["last"]["accuracy"]["mean"] == pytest.approx(own["0"]["accuracy"]["mean"], abs=0.002)
        assert own["3"]["cka"]["mean"] < 0.9


def test_an_autoencoder_reads_turned_last_features_and_no_others(experiment, tmp_path, monkeypatch):
    import torch

    module = experiment("autoencoder_rotations")
    generator = torch.Generator().manual_seed(0)
    basis = torch.rand(12, 784, generator=generator, dtype=torch.float64)
    images = [torch.rand(n, 12, generator=generator, dtype=torch.float64) @ basis / 8 for n in (300, 50)]
    monkeypatch.setattr(module, "load", lambda root, count, test: images)
    module.run("", tmp_path, seeds=1, epochs=3, count=300, test=50)
    psnr = written(tmp_path, "autoencoder_rotations")["psnr_db"]
    assert psnr["last features"]["fitted again"]["mean"] == pytest.approx(psnr["untouched"]["fitted again"]["mean"], abs=0.2)
    assert psnr["last features"]["as trained"]["mean"] < psnr["untouched"]["as trained"]["mean"] - 1


def test_rotations_raise_the_spectral_norm_where_layers_are_not_aligned(experiment, tmp_path):
    experiment("spectral_norm").run(tmp_path, seeds=3)
    table = written(tmp_path, "spectral_norm")["norm / norm before"]
    assert table["0.0"]["lined up"]["raised"] == 1.0 and table["0.0"]["lined up"]["mean"] > 2
    assert table["1.0"]["lined up"]["mean"] == pytest.approx(1, abs=0.05), "aligned already: nothing to raise"
    for own in table.values():
        assert own["last layer alone"]["mean"] == pytest.approx(1) and own["last layer alone"]["std"] < 1e-9
        assert own["lined up"]["mean"] >= own["random"]["mean"]


def test_what_a_covariance_misses(experiment, tmp_path):
    experiment("covariance_limits").run(tmp_path, seeds=2, draws=400, steps=300)
    found = written(tmp_path, "covariance_limits")
    assert all(row["holds"] for row in found["theorem"]) and found["theorem"][0]["gap"]["mean"] < 1e-9
    assert found["permutation"]["covariance"]["mean"] < 1e-12 and found["permutation"]["cka_debiased"]["mean"] < 0.05
    for row in found["floor"]:
        assert row["measured"] == pytest.approx(row["predicted"], rel=0.2)
        assert abs(row["debiased"]) < 0.2 * row["predicted"] + 0.1 * row["true"]
    ratios = [row["trace_ratio"]["mean"] for row in found["shrinkage"]]
    assert np.all(np.diff(ratios) > 0) and np.all(np.diff([row["predicted"] for row in found["shrinkage"]]) > 0)
