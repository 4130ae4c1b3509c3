"""The running average of the weights: its rule in fp64, what is kept of a run, and a resumed run bit for bit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from riftcli.training.averaging import WeightAverage


def test_the_average_follows_its_rule_and_the_weights_come_back_bit_for_bit():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    model[0].bias.requires_grad_(False)
    average = WeightAverage(model, 0.9)
    expected = {name: p.detach().double() for name, p in model.named_parameters() if p.requires_grad}
    for step in range(1, 120):
        with torch.no_grad():
            for p in model.parameters():
                p.add_(torch.randn_like(p))
        average.after_step(step)
        decay = min(0.9, (1 + step) / (10 + step))
        for name, value in expected.items():
            expected[name] = decay * value + (1 - decay) * dict(model.named_parameters())[name].detach().double()
    own = {name: p.detach().clone() for name, p in model.named_parameters()}
    with pytest.raises(RuntimeError), average.in_place():
        for name, p in model.named_parameters():
            if name in expected:
                torch.testing.assert_close(p.double(), expected[name], rtol=1e-5, atol=1e-6)
                assert not torch.equal(p, own[name])
            else:
                assert torch.equal(p, own[name])
        raise RuntimeError
    assert all(torch.equal(p, own[name]) for name, p in model.named_parameters())


def test_it_is_what_is_validated_and_kept_and_resumes_bitwise(rift, tiny_recipe, write_recipe):
    tiny_recipe["train"]["ema"] = 0.6
    code, _, err = rift("finetune", "--recipe", write_recipe(tiny_recipe), "--out", "whole")
    assert code == 0, err
    kept = load_file("whole/model/model.safetensors")
    newest = sorted(Path("whole/last").iterdir())[-1]
    average, raw = load_file(newest / "average.safetensors"), load_file(newest / "model.safetensors")
    report = json.loads(Path("whole/metrics.json").read_text())
    rows = [json.loads(line) for line in Path("whole/metrics.jsonl").read_text().splitlines()]
    best = max((row for row in rows if row["kind"] == "eval" and row["epoch"]), key=lambda row: row["acc"])
    assert report["validation"]["acc"] == best["acc"]
    assert any(not torch.equal(average[name], raw[name]) for name in average)
    if best["epoch"] == tiny_recipe["train"]["epochs"]:
        assert all(torch.equal(kept[name], value) for name, value in average.items())
    # the state after the first epoch of a finished run is the state of one that was killed then
    shutil.copytree("whole", "half")
    shutil.rmtree(Path("half/last") / newest.name)
    record = json.loads(Path("half/run.json").read_text())
    Path("half/run.json").write_text(json.dumps({**record, "status": "interrupted"}))
    code, _, err = rift("finetune", "--resume", "half")
    assert code == 0, err
    again = load_file(Path("half/last") / newest.name / "average.safetensors")
    assert all(torch.equal(again[name], value) for name, value in average.items())
    assert {k: v for k, v in load_file("half/model/model.safetensors").items() if not torch.equal(v, kept[k])} == {}


@pytest.mark.parametrize("adapter", ["full", "lora"])
def test_without_a_memory_it_is_the_plain_run(rift, tiny_recipe, write_recipe, adapter):
    tiny_recipe["adapter"] = {"name": adapter}
    tiny_recipe["train"]["epochs"] = 1
    recipe = write_recipe(tiny_recipe)
    assert rift("finetune", "--recipe", recipe, "--out", "plain")[0] == 0
    code, _, err = rift("finetune", "--recipe", recipe, "--out", "ema", "--set", "train.ema=1e-12")
    assert code == 0, err
    plain, averaged = (load_file(f"{name}/model/model.safetensors") for name in ("plain", "ema"))
    for name, value in plain.items():
        torch.testing.assert_close(averaged[name], value, rtol=1e-6, atol=1e-7)
    code, _, err = rift("finetune", "--recipe", recipe, "--out", "no", "--set", "train.ema=1")
    assert (code, "train.ema" in err) == (2, True)
