"""A real DINOv2 and real pictures, where they lie beside the checkout; skipped elsewhere."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
import torch

SHARED = Path(__file__).parent.parent.parent / "shared"
DINO = SHARED / "models" / "dinov2_small_patch14"
CLIPART = SHARED / "data" / "clipart"
pytestmark = pytest.mark.skipif(not (DINO.is_dir() and CLIPART.is_dir()), reason="no real weights and images beside the checkout")


@pytest.mark.parametrize("compare", ["features", "covariances"])
def test_a_shipped_recipe_on_a_real_backbone(rift, compare):
    """fashion_dinov2_rift with other data: weights by file under the public name, LayerScale, resampled positions."""
    paper = ["--set", "regularizer.compare=covariances", "--set", "regularizer.q=learn"] if compare == "covariances" else []
    code, _, err = rift(
        "finetune", "--recipe", "fashion_dinov2_rift", "--out", "r",
        "--set", f"model.weights={DINO / 'model.safetensors'}",
        "--set", "data.format=image_folder", "--set", f"data.root={CLIPART}",
        "--set", "data.train={from: train, limit: 80}", "--set", "data.val=null",
        "--set", "data.test={from: test, limit: 64}",
        "--set", "train.epochs=1", "--set", "train.batch_size=32", "--set", "train.micro_batch_size=16",
        "--set", "train.workers=0", "--set", "eval.metrics=[acc, cka]", "--set", "eval.batch_size=32", *paper,
    )  # fmt: skip
    assert code == 0, err
    report = json.loads(Path("r/metrics.json").read_text())
    assert 0.9 < report["metrics"]["cka"]["value"] < 1, "two gentle steps move a real backbone a little"
    steps = [json.loads(line) for line in Path("r/metrics.jsonl").read_text().splitlines()]
    assert 5 < steps[0]["effective_rank"] < 64
    assert 0.5 < steps[0]["trace_ratio"] < 2
    if paper:
        assert steps[0]["spectral_bound"] <= steps[0]["similarity_relative"]
    else:
        assert steps[0]["batch_cka"] > 0.9
    model = timm.create_model("local-dir:r/model", pretrained=True).eval()
    assert tuple(model.pretrained_cfg["input_size"]) == (3, 70, 70)
    with torch.inference_mode():
        assert model(torch.zeros(1, 3, 70, 70)).shape == (1, 23)
