"""Every evaluation on networks without class token, with adapters, and on convolutions."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from evaluation_runs import DATA, read

from riftcli.data.transforms import Preprocessing
from riftcli.models.classifier import Classifier


@pytest.fixture(scope="module")
def networks(tmp_path_factory) -> Path:
    """Folders of untrained weights: a ViT without class token, one whose head reads the mean, and a convolutional network."""
    from riftcli.models.backbone import Backbone
    from riftcli.models.weights import save_folder

    place = tmp_path_factory.mktemp("networks")
    small = {"patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2}
    wanted = {
        "mean": ("vit_tiny_patch16_224", {**small, "global_pool": "avg"}),
        "no_token": ("vit_tiny_patch16_224", {**small, "global_pool": "avg", "class_token": False}),
        "registers": ("vit_tiny_patch16_224", {**small, "reg_tokens": 2}),
        "convolutional": ("test_resnet", {}),
    }
    for name, (architecture, args) in wanted.items():
        torch.manual_seed(3)
        vit = Backbone(architecture, pretrained=False, image_size=16, args=args).build()
        save_folder(place / name, vit, [], Preprocessing.of_model(vit, 16, 1.0))
    return place


def trained_on(rift, write_recipe, model: Path, **changes) -> None:
    """One epoch into the folder `r`."""
    recipe = {
        "model": {"name": f"local-dir:{model}"},
        "data": DATA,
        "optim": {"lr": 1e-3},
        "train": {"epochs": 1, "batch_size": 32, "workers": 0},
        "eval": {"metrics": ["acc", "cka"], "batch_size": 16},
    }
    code, _, err = rift("finetune", "--recipe", write_recipe(recipe | changes), "--out", "r")
    assert code == 0, err


@pytest.mark.parametrize("adapter", ["vpt", "adaptformer", "ssf", "oft", "partial"])
def test_every_command_on_a_network_that_something_was_put_into(rift, tiny_weights, tmp_path, write_recipe, adapter):
    trained_on(rift, write_recipe, tiny_weights, adapter={"name": adapter, **({"blocks": 1} if adapter == "partial" else {})})
    code, _, err = rift("report", "r", "--evaluate", "--out", "page.html")
    assert code == 0, err
    assert "warning" not in err
    page = (tmp_path / "page.html").read_text()
    assert all(title in page for title in ("Layers of r", "Attention of r", "PCA map of r", "Confusion matrix of r", "sharpness"))
    assert "Not measured yet" not in page
    code, out, err = rift("knn", "--run", "r", "--json")
    assert code == 0, err
    layers = json.loads((tmp_path / "r/similarity/digits-test/metrics.json").read_text())["layers"]
    names = ["block1", "block2", "head"]
    assert [(cell["reference_layer"], cell["layer"]) for cell in layers] == [(x, y) for x in names for y in names]
    rows = json.loads((tmp_path / "r/attention/digits-test/metrics.json").read_text())["rows"]
    assert all(0 <= row["js_distance"] < 1 for row in rows)


@pytest.mark.parametrize("network", ["mean", "no_token", "registers"])
def test_attention_follows_what_the_head_reads(networks, network):
    from riftcli.models.attention_maps import attention_maps
    from riftcli.models.backbone import Backbone

    vit = Backbone(f"local-dir:{networks / network}").build().eval()
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    tokens = vit.norm_pre(vit._pos_embed(vit.patch_embed(images)))  # (2, prefix + 16, 32)
    prefix = {"mean": 1, "no_token": 0, "registers": 3}[network]
    assert tokens.shape[1] == prefix + 16
    attn = vit.blocks[1].attn
    with torch.no_grad():
        qkv = attn.qkv(vit.blocks[1].norm1(vit.blocks[0](tokens)))
        q, key, _ = qkv.reshape(2, prefix + 16, 3, 2, 16).permute(2, 0, 3, 1, 4)
        weights = (q @ key.transpose(-2, -1) * 16**-0.5).softmax(-1)  # (2, heads, T, T)
    seen = weights[:, :, 0] if network == "registers" else weights[:, :, prefix:].mean(2)
    seen = seen[..., prefix:] / seen[..., prefix:].sum(-1, keepdim=True)
    assert torch.allclose(attention_maps(vit, images).flatten(2), seen, atol=1e-5)


@pytest.mark.parametrize("network", ["mean", "no_token"])
def test_every_command_without_a_class_token(rift, networks, tmp_path, write_recipe, network):
    trained_on(rift, write_recipe, networks / network)
    code, _, err = rift("report", "r", "--evaluate", "--out", "page.html")
    assert code == 0, err
    assert "warning" not in err
    assert "Not measured yet" not in (tmp_path / "page.html").read_text()
    for command in ("knn", "sharpness", "similarity"):
        code, out, err = rift(command, "--run", "r", "--json")
        assert code == 0, err
        read(out)


def test_every_command_on_a_convolutional_network(rift, networks, tmp_path, write_recipe):
    trained_on(rift, write_recipe, networks / "convolutional")
    for command in ("knn", "sharpness", "similarity"):
        code, out, err = rift(command, "--run", "r", "--json")
        assert code == 0, err
        assert all(math.isfinite(row.get("acc", row.get("sharpness", row.get("value", 0)))) for row in read(out)["rows"])
    code, _, err = rift("attention", "--run", "r")
    assert (code, err) == (2, "error: attention maps need a vision transformer with timm's attention blocks\n")
    code, _, err = rift("report", "r", "--evaluate", "--out", "page.html")
    assert code == 0, err
    assert "warning" not in err
    page = (tmp_path / "page.html").read_text()
    assert "Attention of r" not in page
    assert "Not measured yet" not in page, "nothing that cannot be measured is asked for"
    assert "Layers of r" in page


def test_layers_of_a_network_without_tokens_are_the_means_of_its_stages(networks):
    from riftcli.evaluation.layer_features import encode_layers
    from riftcli.models.backbone import Backbone

    net = Backbone(f"local-dir:{networks / 'convolutional'}").build().eval()
    prepare = Preprocessing.of_model(net, 16, 1.0)
    images = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    batches = iter([(images[2:], torch.zeros(2), torch.tensor([2, 3])), (images[:2], torch.zeros(2), torch.tensor([0, 1]))])
    layers = encode_layers(Classifier(net), batches, prepare, torch.device("cpu"))
    with torch.no_grad():
        x = net.maxpool(net.act1(net.bn1(net.conv1(prepare.normalise(images)))))
        by_hand = []
        for stage in (net.layer1, net.layer2, net.layer3, net.layer4):
            x = stage(x)
            by_hand.append(x.mean((2, 3)))
        final = Classifier(net)(prepare.normalise(images)).features
    assert len(layers) == 6, "stem, four stages, head"
    assert all(torch.allclose(ours, wanted, atol=1e-5) for ours, wanted in zip(layers[1:5], by_hand, strict=True))
    assert torch.allclose(layers[5], final, atol=1e-5)
