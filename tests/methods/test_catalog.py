"""Every entry of the catalog, so that a new one is tested for free."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from family import OF_IMAGES

from riftcli import catalog
from riftcli.errors import UsageError
from riftcli.models.backbone import Backbone
from riftcli.models.classifier import Classifier, Depths
from riftcli.models.head import reset_head
from riftcli.protocols import RegularizerContext, WeightPenalty
from riftcli.training.step import Step

ENTRIES = [(kind, name) for kind, table in catalog.CATALOG.items() for name in table]
ADAPTERS, REGULARIZERS = catalog.names("adapter"), OF_IMAGES
ARGS = {"patch_size": 4, "embed_dim": 32, "depth": 3, "num_heads": 2}


@pytest.mark.parametrize(("kind", "name"), ENTRIES)
def test_entry_imports_and_explains_itself(kind, name):
    cls = catalog.component(kind, name)
    assert dataclasses.is_dataclass(cls)
    assert cls.__dataclass_params__.frozen
    assert cls.__doc__ and not cls.__doc__.startswith(cls.__name__ + "(")
    for field in dataclasses.fields(cls):
        assert field.name in cls.__doc__ or field.name == "root", f"{name}.{field.name} is not in the docstring"


def test_an_unknown_name_suggests():
    with pytest.raises(UsageError) as caught:
        catalog.component("regularizer", "riftt")
    assert str(caught.value) == (
        "unknown regularizer 'riftt' (did you mean 'rift'?); choose one of: none, rift, rsc, l2sp, feature_distill, cosine_gram, "
        "difference_vector, ldifs, replay, snd, dive, cosine, trajectory_distill"
    )


@pytest.mark.parametrize("regularizer", REGULARIZERS)
@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("pool", ["token", "avg"])
def test_every_adapter_with_every_regularizer_takes_a_step(adapter, regularizer, pool):
    torch.manual_seed(0)
    vit = Backbone("vit_tiny_patch16_224", pretrained=False, image_size=16, args={**ARGS, "global_pool": pool}).build()
    generator = torch.Generator().manual_seed(1)
    images, targets = torch.randn(8, 3, 16, 16, generator=generator), torch.arange(8) % 3
    with torch.no_grad():
        start = Classifier(vit).eval()(images).features
        of_depths = Depths(vit, 5).eval()(images).features
    reset_head(vit, 3, seed=0)
    method = catalog.component("adapter", adapter)()
    method.prepare(vit)
    config = catalog.component("regularizer", regularizer)()
    depths = getattr(config, "layers", 0)
    model = Classifier(vit, frozen_backbone=not method.trains_backbone, depths=depths)
    model.eval()
    if adapter != "vpt":  # prompts are more keys for the attention
        torch.testing.assert_close(model(images).features, start, msg="step 0 is the pretrained model")
    penalty = None
    if method.trains_backbone:
        context = RegularizerContext(vit.num_features, torch.device("cpu"), lambda: start)
        penalty = config.build(context)
    if isinstance(penalty, WeightPenalty):
        penalty.attach(vit)
    frozen = {name: p.detach().clone() for name, p in vit.named_parameters() if not p.requires_grad}
    step = Step(
        module=model.train(),
        objective=catalog.component("objective", "cross_entropy")().build(targets, 3),
        penalty=None if isinstance(penalty, WeightPenalty) else penalty,
        weight_penalty=penalty if isinstance(penalty, WeightPenalty) else None,
        prepare=lambda x: x,
        pretrained=lambda index, x: (of_depths if depths else start)[index],
        by_layers=bool(depths),
        device=torch.device("cpu"),
        bf16=False,
        micro_batch_size=8,
    )
    step({"task": (images, targets, torch.arange(8))})
    torch.optim.AdamW([p for p in vit.parameters() if p.requires_grad], lr=1e-3).step()
    for name, before in frozen.items():
        assert torch.equal(vit.get_parameter(name), before), f"{name} is frozen"
    trained = {name for name, p in vit.named_parameters() if p.grad is not None}
    assert trained == {name for name, p in vit.named_parameters() if p.requires_grad}
    assert vit.head.weight.grad.abs().sum() > 0
    assert method.trains_backbone == any(not name.startswith("head") for name in trained)
