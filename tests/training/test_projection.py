"""Selective projection decay (Adam-SPD) against the published rule, written out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from riftcli.models.backbone import Backbone
from riftcli.models.head import reset_head
from riftcli.training.projection import SelectiveProjection

ARGS = {"patch_size": 4, "embed_dim": 32, "depth": 1, "num_heads": 2}


def vit():
    torch.manual_seed(0)
    model = Backbone("vit_tiny_patch16_224", pretrained=False, image_size=16, args=ARGS).build()
    reset_head(model, 3, seed=0)
    return model


def written_out(before, start, grad, after, strength):
    """c = -<g, w_before - w_0>; where c < 0: w - strength * max(0, |d'| - |d|) / |d'| * d'."""
    if -(grad * (before - start)).sum() >= 0:
        return after
    moved = after - start
    ratio = max(0.0, float(moved.norm() - (before - start).norm())) / float(moved.norm())
    return after - strength * ratio * moved


@pytest.mark.parametrize("strength", [0.3, 1.0])
def test_every_tensor_follows_the_rule_and_the_head_is_left_alone(strength):
    model = vit()
    projection = SelectiveProjection(model, strength)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    generator = torch.Generator().manual_seed(1)
    starts = {name: p.detach().double().clone() for name, p in model.named_parameters()}
    pulled = 0
    for _ in range(4):
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        before = {name: p.detach().double().clone() for name, p in model.named_parameters()}
        projection.before_step()
        optimizer.step()
        stepped = {name: p.detach().double().clone() for name, p in model.named_parameters()}
        projection.after_step()
        for name, parameter in model.named_parameters():
            expected = written_out(before[name], starts[name], parameter.grad.double(), stepped[name], strength)
            if name.startswith("head"):
                expected = stepped[name]
            torch.testing.assert_close(parameter.detach().double(), expected, rtol=1e-5, atol=1e-6)
            pulled += not torch.equal(parameter.detach().double(), stepped[name])
            if strength == 1.0 and not torch.equal(expected, stepped[name]):
                distance, earlier = (parameter.detach() - starts[name]).norm(), (before[name] - starts[name]).norm()
                assert float(distance) == pytest.approx(float(earlier), rel=1e-4)
    assert pulled > 10


def test_a_run_stays_nearer_to_where_it_started(rift, tiny_recipe, write_recipe, tiny_weights):
    tiny_recipe["regularizer"] = {"name": "none"}
    tiny_recipe["optim"] = {"lr": 3e-3, "weight_decay": 0.0}
    recipe = write_recipe(tiny_recipe)
    assert rift("finetune", "--recipe", recipe, "--out", "plain")[0] == 0
    code, _, err = rift("finetune", "--recipe", recipe, "--out", "spd", "--set", "optim.selective_projection=1.0")
    assert code == 0, err
    start = load_file(tiny_weights / "model.safetensors")
    moved = {}
    for name in ("plain", "spd"):
        weights = load_file(f"{name}/model/model.safetensors")
        moved[name] = sum(float((weights[key] - value).square().sum()) for key, value in start.items() if key in weights)
    assert 0 < moved["spd"] < 0.97 * moved["plain"]
    assert json.loads(Path("spd/metrics.json").read_text())["metrics"]["cka"]["value"] > 0
    warned = rift("finetune", "--recipe", recipe, "--dry-run", "--set", "optim={selective_projection: 1.0}")[2]
    assert (
        "warning: optim.weight_decay pulls the weights to zero, selective_projection to their start: set the decay to 0" in warned
    )
