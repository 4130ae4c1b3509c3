"""What is saved is whole, verified, and put back bit for bit."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from riftcli.errors import StorageError
from riftcli.training import checkpoint
from riftcli.training.optim import build_optimizer, lr_factor, set_lr


def tensors(value: float) -> dict:
    return {"model": {"w": torch.full((50,), value)}, "penalty": {}}


def test_round_trip_and_only_two_are_kept(tmp_path):
    for step in (1, 2, 3):
        checkpoint.save(tmp_path, step, tensors(step), {"progress": {"step": step}})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000002", "step-00000003"]
    loaded, state = checkpoint.load_newest(tmp_path, pytest.fail)
    assert torch.equal(loaded["model"]["w"], torch.full((50,), 3.0))
    assert state == {"progress": {"step": 3}}


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "manifest"])
def test_a_damaged_checkpoint_is_named_set_aside_and_the_one_before_is_used(tmp_path, damage):
    for step in (1, 2):
        checkpoint.save(tmp_path, step, tensors(step), {})
    file = tmp_path / "step-00000002" / "model.safetensors"
    data = bytearray(file.read_bytes())
    if damage == "flip":
        data[-1] ^= 1  # safetensors alone accepts a flipped payload byte
        file.write_bytes(data)
    elif damage == "truncate":
        file.write_bytes(data[:-10])
    elif damage == "remove":
        file.unlink()
    else:
        (tmp_path / "step-00000002" / "manifest.json").write_text("{")
    warnings: list[str] = []
    loaded, _ = checkpoint.load_newest(tmp_path, warnings.append)
    assert float(loaded["model"]["w"][0]) == 1
    assert len(warnings) == 1
    assert "damaged checkpoint" in warnings[0]
    assert (tmp_path / "step-00000002.damaged").is_dir()


def test_nothing_to_resume_from(tmp_path):
    with pytest.raises(StorageError) as caught:
        checkpoint.load_newest(tmp_path, pytest.fail)
    assert str(caught.value) == f"{tmp_path}: no whole checkpoint to resume from; start again with --overwrite"


def test_disk_full_keeps_the_old_checkpoint(tmp_path):
    """In a process of its own, with a limit on file size in place of a full disk."""
    checkpoint.save(tmp_path, 1, tensors(1), {})
    script = f"""
import resource, signal, torch
from pathlib import Path
from riftcli.training import checkpoint
from riftcli.errors import StorageError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    checkpoint.save(Path({str(tmp_path)!r}), 2, {{"model": {{"w": torch.zeros(1_000_000)}}}}, {{}})
except StorageError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "step-00000002: checkpoint could not be written" in done.stdout
    assert "it needs 4 MB; earlier checkpoints are intact" in done.stdout
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"], "no leftovers"
    assert checkpoint.load_newest(tmp_path, pytest.fail)[0]["model"]["w"][0] == 1


def test_optimizer_state_goes_through_files_bitwise(tmp_path):
    def make():
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 2))
        extra = torch.nn.Parameter(torch.zeros(3))
        return model, extra, build_optimizer(model, [extra], "adamw", 1e-2, 0.05, extra_lr_scale=0.5)

    def train(model, extra, optimizer, steps):
        for _ in range(steps):
            optimizer.zero_grad()
            (model(torch.ones(2, 4)).square().sum() + (extra - 1).square().sum()).backward()
            optimizer.step()

    model, extra, optimizer = make()
    train(model, extra, optimizer, 3)
    arrays, packed = checkpoint.pack_optimizer(optimizer)
    checkpoint.save(tmp_path, 3, {"model": {**model.state_dict(), "extra": extra}, "optimizer": arrays}, {"o": packed})
    train(model, extra, optimizer, 3)

    again, extra_2, optimizer_2 = make()
    loaded, state = checkpoint.load_newest(tmp_path, pytest.fail)
    with torch.no_grad():
        extra_2.copy_(loaded["model"].pop("extra"))
    again.load_state_dict(loaded["model"])
    checkpoint.unpack_optimizer(optimizer_2, loaded["optimizer"], state["o"])
    train(again, extra_2, optimizer_2, 3)
    assert torch.equal(extra, extra_2)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_q_is_never_decayed_and_has_its_own_rate():
    model, q = torch.nn.Linear(3, 3), torch.nn.Parameter(torch.zeros(3, 3))
    optimizer = build_optimizer(model, [q], "adamw", 1e-3, 0.1, extra_lr_scale=10)
    group = next(g for g in optimizer.param_groups if any(p is q for p in g["params"]))
    assert (group["weight_decay"], group["peak_lr"]) == (0.0, 1e-2)
    set_lr(optimizer, 0.5)
    assert group["lr"] == 5e-3


def test_layer_decay_reaches_the_learning_rate():
    import timm

    vit = timm.create_model("vit_tiny_patch16_224", num_classes=3, depth=2, embed_dim=32, num_heads=2)
    optimizer = build_optimizer(vit, [], "adamw", 1.0, 0.05, layer_decay=0.5)
    rates = {id(p): g["peak_lr"] for g in optimizer.param_groups for p in g["params"]}
    assert rates[id(vit.head.weight)] == 1.0
    assert rates[id(vit.blocks[0].attn.qkv.weight)] == pytest.approx(0.25)
    assert rates[id(vit.patch_embed.proj.weight)] == pytest.approx(0.125)
    decayed = {id(p) for g in optimizer.param_groups if g["weight_decay"] > 0 for p in g["params"]}
    assert id(vit.pos_embed) not in decayed
    assert id(vit.blocks[0].attn.qkv.weight) in decayed


def test_learning_rate_over_a_run():
    rates = [lr_factor(step, 10, 2, "cosine") for step in range(10)]
    assert rates[:3] == [0.5, 1.0, 1.0]
    assert rates[2:] == sorted(rates[2:], reverse=True)
    assert 0 < rates[-1] < 0.1
    assert lr_factor(6, 10, 2, "linear") == 0.5
    assert lr_factor(9, 10, 0, "constant") == 1.0
