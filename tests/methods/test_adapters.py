"""Adapters: parameter counts of the literature, references in fp64, other backbones, merging, the peft library's files."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F

from riftcli import catalog
from riftcli.errors import ModelError, UsageError
from riftcli.functional.rotations import butterfly
from riftcli.methods.adapters.adaptformer import AdaptFormer
from riftcli.methods.adapters.boft import Boft
from riftcli.methods.adapters.lora import Lora
from riftcli.methods.adapters.oft import Oft
from riftcli.methods.adapters.vpt import Vpt
from riftcli.models import surgery
from riftcli.models.layers.butterfly import BoftLinear
from riftcli.models.layers.low_rank import LoraLinear
from riftcli.models.layers.rotated import OftLinear
from riftcli.models.peft_format import load_adapter, save_adapter

TINY = {"img_size": 28, "patch_size": 14, "embed_dim": 48, "depth": 3, "num_heads": 4}
ZOO = {
    "plain": ("vit_tiny_patch16_224", {}),
    "avg": ("vit_tiny_patch16_224", {"global_pool": "avg"}),
    "no class token": ("vit_tiny_patch16_224", {"class_token": False, "global_pool": "avg"}),
    "dinov2": ("vit_small_patch14_reg4_dinov2", {}),
    "clip": ("vit_base_patch16_clip_224", {}),
    "deit3": ("deit3_small_patch16_224", {}),
}
INSERTS = [name for name in catalog.names("adapter") if catalog.component("adapter", name).saved != "plain"]
MERGES = [name for name in INSERTS if catalog.component("adapter", name).saved == "merged"]


def adapter(name: str, **fields):
    if name == "oft":
        fields.setdefault("block_size", 16)
    return catalog.component("adapter", name)(**fields)


def build(kind: str = "plain", seed: int = 0):
    torch.manual_seed(seed)
    name, options = ZOO[kind]
    vit = timm.create_model(name, num_classes=5, **{**TINY, **options})
    for parameter in vit.parameters():  # trained weights: no zero biases, layer scales that matter
        parameter.data += 0.05 * torch.randn_like(parameter)
    return vit.eval()


def disturb(vit) -> None:
    """As after some training: everything that trains has moved."""
    generator = torch.Generator().manual_seed(5)
    for parameter in vit.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)


IMAGES = torch.randn(3, 3, 28, 28, generator=torch.Generator().manual_seed(1))


# ---- counts


@pytest.mark.parametrize(
    ("name", "fields", "count"),
    [
        ("full", {}, 85_798_656),
        ("linear", {}, 0),
        ("partial", {"blocks": 1}, 7_089_408),
        ("partial", {"blocks": 3}, 21_265_152),
        ("bitfit", {}, 102_912),
        ("bitfit", {"norms": False}, 83_712),
        ("norm_tune", {}, 38_400),
        ("lora", {"targets": ["qkv"]}, 147_456),
        ("lora", {}, 147_456),
        ("lora", {"targets": ["q", "k", "v"]}, 221_184),
        ("lora", {"targets": ["qkv"], "dora": True}, 175_104),
        ("adaptformer", {}, 1_189_632),
        ("vpt", {"tokens": 10, "depth": "shallow"}, 7_680),
        ("vpt", {"tokens": 50, "depth": "deep"}, 460_800),
        ("ssf", {}, 205_824),
        ("oft", {}, 142_848),
        ("boft", {}, 64_512),
    ],
)
def test_trainable_parameters_of_vit_base(name, fields, count):
    with torch.device("meta"):
        vit = timm.create_model("vit_base_patch16_224", num_classes=7)
        catalog.component("adapter", name)(**fields).prepare(vit)
    trained = sum(p.numel() for p in vit.parameters() if p.requires_grad)
    assert trained - sum(p.numel() for p in vit.head.parameters()) == count
    assert all(p.requires_grad for p in vit.head.parameters())


# ---- other backbones


@pytest.mark.parametrize("kind", list(ZOO))
@pytest.mark.parametrize("name", catalog.names("adapter"))
def test_step_0_is_the_pretrained_model_on_every_kind_of_vit(kind, name):
    vit = build(kind)
    before = vit(IMAGES)
    adapter(name).prepare(vit)
    after = vit.eval()(IMAGES)
    assert after.shape == before.shape
    if name == "vpt":
        assert (after - before).abs().max() > 1e-4
    else:
        torch.testing.assert_close(after, before, rtol=0, atol=1e-5)
    after.sum().backward()
    for parameter_name, parameter in vit.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, parameter_name


@pytest.mark.parametrize("kind", list(ZOO))
@pytest.mark.parametrize("name", MERGES)
def test_merged_equals_unmerged_and_not_the_base(kind, name):
    vit = build(kind)
    names = [key for key, _ in vit.named_parameters()]
    before = vit(IMAGES)
    adapter(name).prepare(vit)
    disturb(vit)
    unmerged = vit.eval()(IMAGES)
    assert (unmerged - before).abs().max() > 1e-3
    merged = surgery.merge(copy.deepcopy(vit))
    torch.testing.assert_close(merged(IMAGES), unmerged, rtol=1e-5, atol=1e-5)
    assert set(dict(merged.named_parameters())) == set(names), "timm could not load any other"
    torch.testing.assert_close(vit(IMAGES), unmerged, rtol=0, atol=0, msg="the original is untouched")


@pytest.mark.parametrize("fields", [{"dora": True}, {"dora": True, "targets": ["q", "v", "fc1"]}, {"rslora": True, "alpha": 3.0},
                                    {"targets": ["qkv", "proj", "fc1", "fc2"]}])  # fmt: skip
def test_merged_lora_variants(fields):
    vit = build("dinov2")
    before = vit(IMAGES)
    Lora(**fields).prepare(vit)
    torch.testing.assert_close(vit(IMAGES), before, rtol=0, atol=1e-5)
    disturb(vit)
    unmerged = vit.eval()(IMAGES)
    torch.testing.assert_close(surgery.merge(vit)(IMAGES), unmerged, rtol=1e-5, atol=1e-5)


def test_what_cannot_be_done_is_refused_by_name():
    convnet = timm.create_model("resnet18", num_classes=2)
    rotary = timm.create_model("vit_small_patch16_rope_224", num_classes=2, depth=1)
    with pytest.raises(UsageError) as caught:
        Lora().prepare(convnet)
    assert str(caught.value) == (
        "adapter.name lora: resnet18 is not a plain vision transformer (blocks of norm1, attn, norm2, mlp)"
    )
    with pytest.raises(UsageError) as caught:
        Vpt().prepare(rotary)
    assert str(caught.value) == (
        "adapter.name vpt: vit_small_patch16_rope_224 has positions inside its attention, and prompts have none"
    )
    for name in ("beit_base_patch16_224", "eva02_tiny_patch14_224"):
        vit = timm.create_model(name, num_classes=2, depth=1)
        with pytest.raises(UsageError, match="^adapter.name vpt: .* has positions inside its attention"):
            Vpt().prepare(vit)
        for adapter_name in ("lora", "ssf", "oft", "boft"):
            with pytest.raises(UsageError) as caught:
                catalog.component("adapter", adapter_name)().prepare(vit)
            assert str(caught.value) == (f"adapter.name {adapter_name}: the attention of {name} does not call its qkv layer")
    post = timm.create_model("vit_relpos_small_patch16_rpn_224", num_classes=2, depth=1)
    with pytest.raises(UsageError) as caught:
        AdaptFormer().prepare(post)
    assert str(caught.value) == (
        "adapter.name adaptformer: vit_relpos_small_patch16_rpn_224 has norms behind its MLPs, not before"
    )
    with pytest.raises(UsageError) as caught:
        Oft(block_size=32).prepare(build())
    assert str(caught.value) == "adapter.block_size 32 does not divide the 48 inputs of qkv"
    with pytest.raises(UsageError) as caught:
        Boft(block_size=16, factors=3).prepare(build())
    assert str(caught.value) == "adapter.block_size 16 with 3 factors: 64 does not divide the 48 inputs of qkv"
    with pytest.raises(UsageError) as caught:
        catalog.component("adapter", "partial")(blocks=4).prepare(build())
    assert str(caught.value) == "adapter.blocks 4: the model has only 3 blocks"


@pytest.mark.parametrize(
    ("cls", "fields", "message"),
    [
        (Lora, {"targets": ["queries"]}, "targets: choose from q, k, v, qkv, proj, fc1, fc2"),
        (Lora, {"targets": ["q", "qkv"]}, "targets: each layer once; qkv is q, k and v with one pair of factors"),
        (Lora, {"rank": 0}, "rank: must be 1 or more"),
        (Oft, {"targets": ["q"]}, "targets: q, k and v share one input, so one rotation: use qkv"),
        (Boft, {"block_size": 3, "factors": 2}, "block_size: must be even when there is more than one factor"),
        (Vpt, {"tokens": 0}, "tokens: must be 1 or more"),
        (AdaptFormer, {"dropout": 1.0}, "dropout: must be in [0, 1)"),
    ],
)
def test_values_that_are_wrong(cls, fields, message):
    with pytest.raises(ValueError) as caught:
        cls(**fields)
    assert str(caught.value) == message


# ---- against slow references


def test_lora_and_dora_are_their_formulas():
    torch.manual_seed(0)
    base = torch.nn.Linear(10, 12).double()
    rows = [(0, 4), (8, 12)]
    for dora in (False, True):
        layer = LoraLinear(copy.deepcopy(base), rows, 3, 0.7, 0.0, dora)
        disturb(layer)
        weight = layer.base.weight.detach().clone()
        for i, (start, stop) in enumerate(rows):
            moved = weight[start:stop] + 0.7 * layer.lora_B[i] @ layer.lora_A[3 * i : 3 * i + 3]
            if dora:
                moved = layer.lora_m[i][:, None] * moved / moved.norm(dim=1, keepdim=True)
            weight[start:stop] = moved.detach()
        x = torch.randn(4, 5, 10, dtype=torch.float64)
        torch.testing.assert_close(layer(x), F.linear(x, weight, layer.base.bias), rtol=1e-12, atol=1e-12)


def test_dora_s_norm_is_a_constant_in_backward():
    torch.manual_seed(0)
    layer = LoraLinear(torch.nn.Linear(6, 5).double().requires_grad_(False), [(0, 5)], 2, 1.0, 0.0, True)
    disturb(layer)
    x, up = torch.randn(3, 6, dtype=torch.float64), torch.randn(3, 5, dtype=torch.float64)
    (layer(x) * up).sum().backward()
    norm = (layer.base.weight + layer.update(0)).norm(dim=1).detach()
    slow_b = layer.lora_B[0].detach().requires_grad_()
    weight = layer.lora_m[0].detach()[:, None] / norm[:, None] * (layer.base.weight + slow_b @ layer.lora_A.detach())
    (F.linear(x, weight) * up).sum().backward()
    torch.testing.assert_close(layer.lora_B[0].grad, slow_b.grad, rtol=1e-10, atol=1e-12)


def test_oft_and_boft_rotate():
    torch.manual_seed(0)
    for layer in (OftLinear(torch.nn.Linear(24, 6).double(), 8, None), BoftLinear(torch.nn.Linear(24, 6).double(), 4, 2)):
        disturb(layer)
        eye = torch.eye(24, dtype=torch.float64)
        rotation = torch.block_diag(*layer.rotations()) if isinstance(layer, OftLinear) else layer.rotated(eye)
        torch.testing.assert_close(rotation @ rotation.T, eye, rtol=0, atol=1e-12)
        assert (rotation - eye).abs().max() > 0.01
        scale = layer.boft_s[:, 0] if isinstance(layer, BoftLinear) else 1.0
        x = torch.randn(5, 24, dtype=torch.float64)
        expected = (x @ rotation) @ layer.base.weight.T * scale + layer.base.bias
        torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(layer.merged()(x), expected, rtol=1e-12, atol=1e-12)


def test_coft_stays_within_its_bound():
    layer = OftLinear(torch.nn.Linear(24, 6), 8, 1e-2)
    layer.oft_R.data.normal_()
    distance = (layer.rotations() - torch.eye(8)).flatten(1).norm(dim=1)
    assert (distance <= 1e-2 + 1e-6).all() and (distance > 5e-3).all()


def test_butterfly_factors_let_every_input_reach_every_output():
    assert butterfly(16, 4, 1).tolist() == [0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15]
    layer = BoftLinear(torch.nn.Linear(16, 4), 4, 3)
    layer.boft_R.data.normal_(0, 0.5)
    reached = (layer.rotated(torch.eye(16)).abs() > 1e-6).float()
    assert reached.mean() > BoftLinear(torch.nn.Linear(16, 4), 4, 1).rotated(torch.eye(16)).ne(0).float().mean() * 2


# ---- prompts


@pytest.mark.parametrize("kind", ["plain", "dinov2", "no class token"])
@pytest.mark.parametrize("depth", ["deep", "shallow"])
def test_prompts_against_a_loop_by_hand(kind, depth):
    vit = build(kind)
    plain = copy.deepcopy(vit)
    Vpt(tokens=4, depth=depth).prepare(vit)
    prompts = [block.prompt.tokens for block in vit.blocks]
    k = plain.num_prefix_tokens
    x = plain.norm_pre(plain._pos_embed(plain.patch_embed(IMAGES)))
    count, carried = x.shape[1], torch.empty(0)
    for i, block in enumerate(plain.blocks):
        fresh = prompts[i].expand(3, -1, -1) if prompts[i] is not None else carried
        x = block(torch.cat([x[:, :k], fresh, x[:, k:]], 1))
        carried, x = x[:, k : k + 4], torch.cat([x[:, :k], x[:, k + 4 :]], 1)
    expected = plain.forward_head(plain.norm(x))
    torch.testing.assert_close(vit(IMAGES), expected, rtol=0, atol=1e-5)
    assert vit.forward_features(IMAGES).shape[1] == count, "prompts are taken out again"
    maps = vit.forward_intermediates(IMAGES, intermediates_only=True)
    assert {tuple(m.shape) for m in maps} == {(3, 48, 2, 2)}, "and nobody sees them between blocks"
    assert sum(p is not None for p in prompts) == (3 if depth == "deep" else 1)


def test_the_adaptformer_branch_takes_the_input_of_norm2():
    vit = build("deit3")
    plain = copy.deepcopy(vit)
    AdaptFormer(width=6, scale=0.5).prepare(vit)
    disturb(vit)
    plain.head.load_state_dict(vit.head.state_dict())
    x = plain.norm_pre(plain._pos_embed(plain.patch_embed(IMAGES)))
    for block, own in zip(plain.blocks, vit.blocks, strict=True):
        x = x + block.ls1(block.attn(block.norm1(x)))
        branch = own.adapter.up(torch.relu(own.adapter.down(x)))
        x = x + block.ls2(block.mlp(block.norm2(x))) + 0.5 * branch
    torch.testing.assert_close(vit.eval()(IMAGES), plain.forward_head(plain.norm(x)), rtol=0, atol=1e-5)
    assert not hasattr(vit.blocks[0].norm2, "branch_input"), "nothing is held beyond the forward pass"


def test_frozen_blocks_keep_no_activations():
    """Bytes that autograd saves in a forward pass: the last block alone against the whole network."""

    def saved(name: str, **fields) -> int:
        vit = build()
        catalog.component("adapter", name)(**fields).prepare(vit)
        weights = {p.data_ptr() for p in vit.parameters()}
        total = 0

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal total
            total += 0 if tensor.data_ptr() in weights else tensor.numel() * tensor.element_size()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            vit.train()(IMAGES)
        return total

    assert saved("partial", blocks=1) < 0.45 * saved("full")
    assert saved("linear") < 0.02 * saved("full")


@pytest.mark.parametrize("name", catalog.names("adapter"))
def test_gradient_checkpointing_changes_no_gradient_and_models_can_be_copied(name):
    grads = []
    for checkpointing in (False, True):
        vit = build("dinov2")
        torch.manual_seed(3)
        adapter(name, **({"dropout": 0.0} if name == "adaptformer" else {})).prepare(vit)
        disturb(vit)
        vit.set_grad_checkpointing(checkpointing)
        vit.train()(IMAGES).square().sum().backward()
        grads.append({key: p.grad.clone() for key, p in vit.named_parameters() if p.requires_grad})
        copy.deepcopy(vit)
    for key, value in grads[0].items():
        torch.testing.assert_close(grads[1][key], value, rtol=1e-4, atol=1e-5, msg=key)


@pytest.mark.parametrize("case", [("ssf", {}), ("lora", {"dora": True}), ("boft", {})])
def test_a_scale_near_one_counts_under_bf16(case):
    name, fields = case
    vit = build()
    adapter(name, **fields).prepare(vit)
    layer = vit.blocks[0].attn.qkv
    x = torch.randn(2, 5, 48)
    scales = {"ssf": "ssf_scale", "lora": "lora_m.0", "boft": "boft_s"}[name]
    parameter = dict(layer.named_parameters())[scales]
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        before = layer(x).float()
        parameter.mul_(1.003)
        after = layer(x).float()
    assert (after != before).float().mean() > 0.1, "some values round to their neighbours"
    assert layer(x).dtype == torch.float32


def test_shallow_prompts_and_checkpointing_are_refused_together():
    from riftcli import recipe

    with pytest.raises(UsageError) as caught:
        recipe.load("demo_vpt", ["adapter.depth=shallow", "train.grad_checkpointing=true"])
    assert str(caught.value) == (
        "--set train.grad_checkpointing=true: train.grad_checkpointing: does not go with shallow prompts "
        "(block to block); use deep ones"
    )


# ---- the peft library's files


PEFT_CASES = {
    "lora q, v": ("lora", {}),
    "lora everything": ("lora", {"targets": ["qkv", "proj", "fc1", "fc2"], "rank": 2, "alpha": 5.0}),
    "rslora": ("lora", {"rslora": True, "rank": 3}),
    "dora q, v": ("lora", {"dora": True}),
    "dora fused": ("lora", {"dora": True, "targets": ["qkv", "fc2"]}),
    "oft": ("oft", {"targets": ["qkv", "fc1"]}),
    "coft": ("oft", {"coft": True, "eps": 0.5}),
    "boft": ("boft", {"targets": ["qkv", "proj"]}),
}


@pytest.mark.parametrize("case", list(PEFT_CASES))
def test_peft_loads_ours_and_we_load_ours_back(case, tmp_path):
    name, fields = PEFT_CASES[case]
    base = build()
    vit = copy.deepcopy(base)
    adapter(name, **fields).prepare(vit)
    disturb(vit)
    save_adapter(tmp_path / "adapter", vit, {"name": name}, "a base model")
    expected = vit.eval()(IMAGES)
    back = load_adapter(copy.deepcopy(base), tmp_path / "adapter")
    torch.testing.assert_close(back.eval()(IMAGES), expected, rtol=1e-5, atol=1e-5)
    peft = pytest.importorskip("peft")
    theirs = peft.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "adapter")
    torch.testing.assert_close(theirs.eval()(IMAGES), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["LORA", "DORA", "RSLORA", "OFT", "BOFT"])
def test_we_load_what_peft_saves(kind, tmp_path):
    peft = pytest.importorskip("peft")
    base = build()
    common = {"target_modules": ["qkv", "fc1"], "modules_to_save": ["head"]}
    config = {
        "LORA": lambda: peft.LoraConfig(r=3, lora_alpha=7, **common),
        "DORA": lambda: peft.LoraConfig(r=3, use_dora=True, **common),
        "RSLORA": lambda: peft.LoraConfig(r=4, use_rslora=True, **common),
        "OFT": lambda: peft.OFTConfig(r=0, oft_block_size=8, use_cayley_neumann=False, **common),
        "BOFT": lambda: peft.BOFTConfig(boft_block_size=4, boft_n_butterfly_factor=1, **common),
    }[kind]()
    theirs = peft.get_peft_model(copy.deepcopy(base), config)
    disturb(theirs)
    theirs.save_pretrained(tmp_path)
    ours = load_adapter(copy.deepcopy(base), tmp_path)
    torch.testing.assert_close(ours.eval()(IMAGES), theirs.eval()(IMAGES), rtol=1e-5, atol=1e-5)


def test_peft_s_patterns_are_read_and_what_is_not_known_is_refused(tmp_path):
    peft = pytest.importorskip("peft")
    base, common = build(), {"target_modules": ["qkv", "fc1"], "modules_to_save": ["head"]}
    theirs = peft.get_peft_model(
        copy.deepcopy(base), peft.LoraConfig(r=3, lora_alpha=7, alpha_pattern={"qkv": 30}, rank_pattern={"fc1": 2}, **common)
    )
    disturb(theirs)
    theirs.save_pretrained(tmp_path / "patterns")
    ours = load_adapter(copy.deepcopy(base), tmp_path / "patterns")
    torch.testing.assert_close(ours.eval()(IMAGES), theirs.eval()(IMAGES), rtol=1e-5, atol=1e-5)
    biased = peft.get_peft_model(copy.deepcopy(base), peft.LoraConfig(r=3, lora_bias=True, **common))
    biased.save_pretrained(tmp_path / "bias")
    with pytest.raises(ModelError, match="tensors have no place in the model, e.g. blocks.0.attn.qkv.lora_B.bias"):
        load_adapter(copy.deepcopy(base), tmp_path / "bias")


def test_merging_an_adapter_folder(rift, tmp_path, tiny_weights):
    import riftcli

    base = f"local-dir:{tiny_weights}"
    for name in ("lora", "ssf", "vpt"):
        vit = timm.create_model(base, pretrained=True, num_classes=4)
        catalog.component("adapter", name)().prepare(vit)
        disturb(vit)
        save_adapter(tmp_path / name, vit, {"name": name}, base)
        code, _, err = rift("merge", tmp_path / name, "--model", base, "--out", tmp_path / f"{name}-merged")
        if name == "vpt":
            assert (code, err) == (2, f"error: {tmp_path}/vpt: vpt is not a layer of timm's and cannot be folded in\n")
            continue
        assert code == 0, err
        images = torch.randn(2, 3, 16, 16)
        merged = riftcli.load(str(tmp_path / f"{name}-merged"))
        torch.testing.assert_close(merged(images), vit.eval()(images), rtol=1e-5, atol=1e-5)
    assert rift("merge", tmp_path / "lora")[2] == (
        f"error: {tmp_path}/lora: an adapter without its run does not say what it was trained on; give --model NAME\n"
    )
    assert rift("merge", tmp_path / "lora", "--model", base, "--out", tmp_path / "ssf")[2] == (
        f"error: --out {tmp_path}/ssf: is not an empty folder; choose another one\n"
    )


def test_adapter_folders_that_do_not_fit(tmp_path):
    vit = build()
    Lora().prepare(vit)
    with pytest.raises(ModelError) as caught:
        load_adapter(build(), tmp_path)
    assert str(caught.value) == f"{tmp_path}: no adapter_config.json; expected an adapter folder in peft's format"
    save_adapter(tmp_path, vit, {"name": "lora"}, "base")
    other = timm.create_model("vit_tiny_patch16_224", num_classes=5, **{**TINY, "embed_dim": 32})
    with pytest.raises(ModelError) as caught:
        load_adapter(other, tmp_path)
    assert str(caught.value) == f"{tmp_path}: blocks.0.attn.qkv.lora_A is (8, 48), expected (8, 32)"
    shallow = timm.create_model("vit_tiny_patch16_224", num_classes=5, **{**TINY, "depth": 2})
    with pytest.raises(ModelError) as caught:
        load_adapter(shallow, tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}: 2 tensors have no place in the model, e.g. blocks.2.attn.qkv.lora_A.weight; is it for another one?"
    )
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**config, "peft_type": "IA3"}))
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(ModelError) as caught:
        load_adapter(build(), tmp_path)
    assert str(caught.value) == f"{tmp_path}: adapters of type IA3 are not read; LORA, OFT and BOFT are"


# ---- runs


@pytest.mark.parametrize("name", catalog.names("adapter"))
def test_each_adapter_trains_saves_reloads_and_resumes(name, rift, tiny_recipe, write_recipe, tiny_weights, read_json):
    import riftcli

    tiny_recipe["adapter"] = {"name": name} | ({"blocks": 1} if name == "partial" else {})
    tiny_recipe["regularizer"] = {"name": "none" if name == "linear" else "rift"}
    recipe = write_recipe(tiny_recipe)
    code, _, err = rift("finetune", "--recipe", recipe, "--out", "run")
    assert code == 0, err
    report = read_json("run/metrics.json")
    assert report["model"]["method"]["adapter"] == name
    loaded = riftcli.load("run")
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    logits = loaded(images)
    kind = catalog.component("adapter", name).saved
    folder = str(Path("run/model").resolve())
    if kind == "unmerged":
        with pytest.raises(RuntimeError, match="(?i)unexpected key"):
            timm.create_model(f"local-dir:{folder}", pretrained=True)
        code, _, err = rift("merge", "run", "--out", "merged")
        assert (code, err) == (
            2,
            f"error: run: {name} is not a layer of timm's and cannot be folded in; load the run with riftcli.load('run')\n",
        )
    else:
        torch.testing.assert_close(timm.create_model(f"local-dir:{folder}", pretrained=True).eval()(images), logits)
    if kind == "merged":
        code, _, err = rift("merge", "run", "--out", "merged")
        assert code == 0, err
        again = timm.create_model(f"local-dir:{Path('merged').resolve()}", pretrained=True).eval()
        torch.testing.assert_close(again(images), logits, rtol=1e-5, atol=1e-5)
        assert not torch.equal(
            timm.create_model(f"local-dir:{tiny_weights}", pretrained=True)(images), again.forward_features(images)
        )
    assert Path("run/adapter").is_dir() == (kind != "plain")
    assert ("riftcli.load" in Path("run/model/README.md").read_text()) == (kind == "unmerged")
    code, out, err = rift("eval", "--run", "run", "--metrics", "acc,cka", "--json")
    assert code == 0, err
    assert json.loads(out)["metrics"]["acc"]["value"] == report["metrics"]["acc"]["value"]
