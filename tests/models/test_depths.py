"""Features of several depths in one forward: the same as layer by layer, and the last ones are the usual features."""

from __future__ import annotations

import pytest
import torch

from riftcli import catalog
from riftcli.errors import UsageError
from riftcli.models.backbone import Backbone
from riftcli.models.classifier import Classifier, Depths, depth_features

ARGS = {"patch_size": 4, "embed_dim": 32, "depth": 6, "num_heads": 2}


def vit(pool: str = "token"):
    torch.manual_seed(0)
    return Backbone("vit_tiny_patch16_224", pretrained=False, image_size=16, args={**ARGS, "global_pool": pool}).build().eval()


@pytest.mark.parametrize("pool", ["token", "avg"])
@pytest.mark.parametrize(("count", "blocks"), [(1, []), (2, [2]), (3, [1, 3]), (6, [0, 1, 2, 3, 4]), (9, [0, 1, 2, 3, 4])])
def test_equally_spaced_blocks_and_the_features_before_the_head(pool, count, blocks):
    model = vit(pool)
    images = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    tokens = []
    handles = [block.register_forward_hook(lambda module, args, out: tokens.append(out)) for block in model.blocks]
    with torch.no_grad():
        plain = Classifier(model)(images)
        for handle in handles:
            handle.remove()
        found = depth_features(model, images, count)
    assert len(found) == len(blocks) + 1
    torch.testing.assert_close(found[-1], plain.features)
    for block, feature in zip(blocks, found, strict=False):
        read = tokens[block][:, 0] if pool == "token" else tokens[block][:, model.num_prefix_tokens :].mean(1)
        torch.testing.assert_close(feature, read)


@pytest.mark.parametrize("adapter", catalog.names("adapter"))
def test_one_forward_gives_both_with_every_adapter(adapter):
    model = vit()
    catalog.component("adapter", adapter)().prepare(model)
    images = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        plain, deep = Classifier(model)(images), Classifier(model, depths=3)(images)
        wide = Depths(model, 3)(images)
    torch.testing.assert_close(deep.features, plain.features)
    torch.testing.assert_close(deep.logits, plain.logits)
    torch.testing.assert_close(deep.layers[:, -32:], plain.features)
    assert torch.equal(wide.features, deep.layers)
    assert deep.layers.shape == (4, 3 * 32)


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_lite0"])
def test_a_network_without_blocks_in_a_row_is_refused(name):
    model = Backbone(name, pretrained=False, image_size=32).build().eval()
    with pytest.raises(UsageError) as caught:
        Classifier(model, depths=3)(torch.randn(2, 3, 32, 32))
    assert str(caught.value) == "regularizer.layers: this network hands out no blocks in a row (timm: forward_intermediates)"
