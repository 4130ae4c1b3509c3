"""A compiled run ends where one that is not compiled does; so do fused and plain optimizers."""

from __future__ import annotations

import copy
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from riftcli.errors import EnvironmentError
from riftcli.methods.regularizers.l2sp import L2sp
from riftcli.protocols import Output
from riftcli.training import compiling, setup
from riftcli.training.compiling import Replayed, compiles
from riftcli.training.optim import build_optimizer


@pytest.mark.skipif(shutil.which("g++") is None, reason="compiling for a CPU needs a C++ compiler")
def test_a_compiled_run_ends_in_the_same_place(rift, tiny_recipe, write_recipe, tmp_path, read_json):
    """With drop path, augmentation and a second, frozen forward."""
    tiny_recipe["augment"] = {"flip": 0.5}
    tiny_recipe["regularizer"] = {"name": "rift", "compare": "features", "q": "fixed"}
    tiny_recipe["model"]["drop_path"] = 0.3
    tiny_recipe["train"] |= {"epochs": 2, "batch_size": 32}
    for name, setting in (("plain", False), ("compiled", True), ("graphs", "graphs")):
        tiny_recipe["train"]["compile"] = setting
        code, _, err = rift("finetune", "--recipe", write_recipe(tiny_recipe), "--out", name)
        assert code == 0, err
    tensors = [load_file(tmp_path / name / "model/model.safetensors") for name in ("plain", "compiled", "graphs")]
    assert tensors[0].keys() == tensors[1].keys(), "saved under the names of the network itself"
    assert all(torch.equal(value, tensors[2][name]) for name, value in tensors[1].items()), "graphs are for GPUs, copies for all"
    rows = [
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("plain", "compiled")
    ]
    losses = [[row["loss"] for row in own if row["kind"] == "step"] for own in rows]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3), "the same samples are dropped"
    for name, value in tensors[0].items():
        torch.testing.assert_close(tensors[1][name], value, rtol=0.05, atol=2e-3, msg=name)
    assert losses[0] != losses[1], "it was compiled"


def test_outputs_of_replayed_kernels_are_copies(monkeypatch):
    """A replay writes over the outputs of the last one: both must be told apart, and whoever asks keeps what came first."""
    kept, told = Output(torch.zeros(2, 3), torch.zeros(2, 4)), []
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: told.append(float(kept.logits[0, 0])))

    def replay(images):
        for part in kept[:2]:
            part += images.sum()
        return kept

    network = Replayed(replay)
    first, second = network(torch.ones(1)), network(torch.ones(1))
    assert told == [0, 1], "before the replay"
    assert float(first.features.sum()) == 6 and float(second.features.sum()) == 12 and second.layers is None


@pytest.mark.parametrize(
    ("setting", "why"), [("train.micro_batch_size=16", "micro_batch_size"), ("regularizer.on=reference", "on")]
)
def test_graphs_are_refused_where_a_step_has_several_passes(rift, tiny_recipe, write_recipe, setting, why):
    tiny_recipe["reference"] = {"format": "demo_fashion", "split": {"from": "test", "limit": 64}}
    code, _, err = rift("finetune", "--recipe", write_recipe(tiny_recipe), "--set", "train.compile=graphs", "--set", setting)
    assert code == 2 and "train.compile: graphs are for steps of one pass" in err and why in err, err


@pytest.mark.parametrize("strength", [1.0, {"ratio": 0.5}])
def test_gradients_of_features_are_measured_on_a_network_that_hands_them_out(
    rift, tiny_recipe, write_recipe, monkeypatch, strength
):
    """Outputs of a compiled network, and of DDP's first pass in a fixed order, do not lead from one to the other."""
    seen, build = [], setup.trained_module

    def noted(network, cached, compiling, graphs, one_pass):
        seen.append((compiling, one_pass))
        return build(network, cached)

    monkeypatch.setattr(setup, "trained_module", noted)
    tiny_recipe["regularizer"]["strength"] = strength
    tiny_recipe["train"] |= {"epochs": 1, "compile": True}
    code, _, err = rift("finetune", "--recipe", write_recipe(tiny_recipe), "--out", "r")
    assert code == 0, err
    assert seen == [(strength == 1.0, strength == 1.0)]


def test_auto_is_for_gpus(monkeypatch):
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    monkeypatch.setattr(compiling, "can_compile", lambda device: False)
    assert not compiles("auto", gpu) and not compiles(False, gpu)
    with pytest.raises(EnvironmentError, match="^train.compile: torch.compile needs a C\\+\\+ compiler"):
        compiles(True, cpu)
    monkeypatch.setattr(compiling, "can_compile", lambda device: True)
    assert [compiles(s, d) for s in ("auto", True, False) for d in (cpu, gpu)] == [False, True, True, True, False, False]


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd"])
def test_a_fused_optimizer_moves_as_the_plain_one(name):
    torch.manual_seed(0)
    nets = [torch.nn.Linear(5, 3)]
    nets.append(copy.deepcopy(nets[0]))
    optimizers = [build_optimizer(net, [], name, 1e-2, 0.01, fused=fused) for net, fused in zip(nets, (False, True), strict=True)]
    assert not optimizers[0].defaults.get("fused") and optimizers[1].defaults["fused"]
    for step in range(5):
        for net, optimizer in zip(nets, optimizers, strict=True):
            optimizer.zero_grad()
            net(torch.full((4, 5), 0.1 * step)).square().sum().backward()
            optimizer.step()
    torch.testing.assert_close(nets[0].weight, nets[1].weight, rtol=1e-5, atol=1e-6)
    lamb = build_optimizer(nets[0], [], "lamb", 1e-2, 0.01, fused=True)  # timm's own, which has no such thing
    assert "fused" not in lamb.defaults


def test_l2sp_for_many_tensors_at_once_is_the_formula():
    torch.manual_seed(0)
    vit = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2))
    vit.get_classifier = lambda: vit[1]
    penalty = L2sp(strength=0.3, head_strength=0.2).build(None)
    penalty.attach(vit)
    start = copy.deepcopy(vit)
    with torch.no_grad():
        for parameter in vit.parameters():
            parameter.add_(torch.randn_like(parameter))
    vit(torch.ones(1, 4)).sum().backward()
    before = {name: parameter.grad.clone() for name, parameter in vit.named_parameters()}
    value = penalty.add_gradient()
    wanted = 0.0
    for (name, parameter), (_, old) in zip(vit.named_parameters(), start.named_parameters(), strict=True):
        alpha, centre = (0.2, 0.0) if name.startswith("1.") else (0.3, old)
        wanted += 0.5 * alpha * float((parameter - centre).square().sum())
        torch.testing.assert_close(parameter.grad, before[name] + alpha * (parameter - centre).detach())
    assert float(value) == pytest.approx(wanted, rel=1e-5)
