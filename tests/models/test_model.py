"""Building, loading and saving models, and the messages when that fails."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file

import riftcli
from riftcli.data.transforms import Preprocessing
from riftcli.errors import ModelError
from riftcli.methods.objectives.softmax import SoftmaxLoss
from riftcli.models import head
from riftcli.models.backbone import Backbone
from riftcli.models.classifier import Classifier, frozen_copy
from riftcli.models.head import fit_head, reset_head, zero_head
from riftcli.models.weights import save_folder

ARGS = {"patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2}


def images(n: int = 3, size: int = 16) -> torch.Tensor:
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(0))


def refused(backbone: Backbone) -> str:
    with pytest.raises(ModelError) as caught:
        backbone.build()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_local_folder_gives_its_weights(tiny_weights):
    vit = Backbone(f"local-dir:{tiny_weights}").build()
    for name, tensor in load_file(tiny_weights / "model.safetensors").items():
        assert torch.equal(vit.state_dict()[name], tensor), name


def test_a_weights_file_with_a_timm_name(tiny_weights):
    model = Backbone("vit_tiny_patch16_224", weights=str(tiny_weights / "model.safetensors"), image_size=16, args=ARGS).build()
    folder = Backbone("vit_tiny_patch16_224", weights=str(tiny_weights), image_size=16, args=ARGS).build()
    reference = Backbone(f"local-dir:{tiny_weights}").build()
    for name, tensor in reference.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
        assert torch.equal(folder.state_dict()[name], tensor), name


def test_position_embedding_is_resampled_for_another_size(tiny_weights):
    vit = Backbone(f"local-dir:{tiny_weights}", image_size=32).build()
    assert vit.pos_embed.shape[1] == 1 + 64
    assert Classifier(vit)(images(2, 32)).features.shape == (2, 32)


def test_scratch_ignores_the_weights(tiny_weights):
    torch.manual_seed(0)
    scratch = Backbone(f"local-dir:{tiny_weights}", pretrained=False).build()
    loaded = Backbone(f"local-dir:{tiny_weights}").build()
    assert not torch.equal(scratch.blocks[0].mlp.fc1.weight, loaded.blocks[0].mlp.fc1.weight)


@pytest.mark.parametrize("feature", ["pooled", "cls", "avg"])
def test_feature_is_the_vector_before_the_head(tiny_weights, feature):
    vit = Backbone(f"local-dir:{tiny_weights}", feature=feature).build()
    reset_head(vit, 5, seed=0)
    model = Classifier(vit).eval()
    output = model(images())
    tokens = vit.forward_features(images())
    expected = tokens[:, 1:].mean(1) if feature == "avg" else tokens[:, 0]
    torch.testing.assert_close(output.features, expected)
    torch.testing.assert_close(output.logits, vit(images()))
    torch.testing.assert_close(output.logits, vit.head(output.features))


@pytest.mark.parametrize("feature", ["pooled", "avg"])
@pytest.mark.parametrize("size", [16, 32])
def test_saved_folder_gives_timm_the_same_logits(tiny_weights, tmp_path, feature, size):
    vit = Backbone(f"local-dir:{tiny_weights}", image_size=size, feature=feature, drop_path=0.1).build()
    reset_head(vit, 3, seed=1)
    preprocessing = Preprocessing.of_model(vit, size, 0.75)
    save_folder(tmp_path / "m", vit, ["a", "b", "c"], preprocessing)
    loaded = timm.create_model(f"local-dir:{tmp_path / 'm'}", pretrained=True).eval()
    assert torch.equal(loaded(images(size=size)), vit.eval()(images(size=size)))
    assert torch.equal(riftcli.load(tmp_path / "m")(images(size=size)), vit(images(size=size)))
    config = timm.data.resolve_model_data_config(loaded)
    assert config["input_size"] == (3, size, size)
    assert config["crop_pct"] == 0.75
    assert loaded.pretrained_cfg["label_names"] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("name", "args"), [("resnet18", {}), ("convnext_atto", {}), ("vit_medium_patch16_reg4_gap_256", {"depth": 1})]
)
def test_other_families_of_timm_round_trip_too(tmp_path, name, args):
    torch.manual_seed(0)
    model = Backbone(name, pretrained=False, image_size=64, args=args).build()
    reset_head(model, 3, seed=1)
    output = Classifier(model).eval()(images(2, 64))
    assert output.features.shape == (2, model.num_features)
    torch.testing.assert_close(output.logits, model(images(2, 64)))
    save_folder(tmp_path / "m", model, ["a", "b", "c"], Preprocessing.of_model(model, 64))
    loaded = timm.create_model(f"local-dir:{tmp_path / 'm'}", pretrained=True).eval()
    assert torch.equal(loaded(images(2, 64)), model(images(2, 64)))
    assert tuple(timm.data.resolve_model_data_config(loaded)["input_size"]) == (3, 64, 64)


def test_a_head_that_is_more_than_linear_is_refused():
    model = Backbone("levit_128s", pretrained=False).build()
    with pytest.raises(ModelError) as caught:
        reset_head(model, 3, seed=0)
    assert str(caught.value) == "levit_128s: its head is not one linear layer on its features"


def test_saved_file_has_pt_metadata_and_the_umask_mode(tiny_weights, tmp_path):
    from safetensors import safe_open

    with safe_open(tiny_weights / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
    assert (tiny_weights / "model.safetensors").stat().st_mode & 0o777 == (tiny_weights / "config.json").stat().st_mode & 0o777


def test_frozen_copy_is_apart():
    vit = Backbone("vit_tiny_patch16_224", pretrained=False, image_size=16, args=ARGS).build()
    copy = frozen_copy(vit)
    with torch.no_grad():
        vit.norm.weight.fill_(3)
    assert float(copy.norm.weight.max()) == 1
    assert not any(p.requires_grad for p in copy.parameters())
    assert not copy.training


def test_frozen_backbone_stays_in_eval_mode_while_training():
    vit = Backbone("vit_tiny_patch16_224", pretrained=False, image_size=16, args=ARGS, drop_path=0.5).build()
    reset_head(vit, 3, seed=0)
    model = Classifier(vit, frozen_backbone=True).train()
    assert torch.equal(model(images()).features, model(images()).features)


def test_heads():
    vit = Backbone("vit_tiny_patch16_224", pretrained=False, image_size=16, args=ARGS).build()
    state = torch.get_rng_state()
    reset_head(vit, 4, seed=0)
    assert torch.equal(torch.get_rng_state(), state), "the run's random stream is not touched"
    assert 0.01 < vit.head.weight.std().item() < 0.03
    zero_head(vit)
    assert not vit.head.weight.any()


@pytest.mark.parametrize("small", [0, 2**25], ids=["fp32", "fp64"])
def test_fitted_head_is_logistic_regression(small, monkeypatch):
    """L-BFGS with ridge r is scikit-learn's LogisticRegression(C = 1 / (r N)) on features of unit mean square."""
    monkeypatch.setattr(head, "SMALL", small)
    from sklearn.linear_model import LogisticRegression

    from riftcli.models.head import RIDGES

    generator = torch.Generator().manual_seed(0)
    targets = torch.arange(120) % 3
    features = torch.randn(120, 32, generator=generator) * torch.linspace(0.01, 3, 32) + 4
    features[:, :3] += 2 * torch.nn.functional.one_hot(targets)
    vit = Backbone("vit_tiny_patch16_224", pretrained=False, image_size=16, args=ARGS).build()
    reset_head(vit, 3, seed=0)
    loss, ridge = fit_head(vit, features, targets, SoftmaxLoss(None, 0.0))
    assert ridge in RIDGES
    centred = features.double() - features.double().mean(0)
    scaled = (centred / centred.square().mean().sqrt()).numpy()
    reference = LogisticRegression(C=1 / (ridge * 120), max_iter=5000, tol=1e-10).fit(scaled, targets)
    ours = vit.head(features).softmax(1).detach().numpy()
    assert abs(ours - reference.predict_proba(scaled)).max() < 1e-3
    expected = torch.nn.functional.cross_entropy(vit.head(features), targets).item()
    assert loss == pytest.approx(expected, abs=1e-4)


def fitted(features: torch.Tensor, targets: torch.Tensor, classes: int) -> tuple[torch.Tensor, float, float]:
    """Probabilities of a fitted head, its mean loss and ridge."""
    vit = Backbone("vit_tiny_patch16_224", pretrained=False, image_size=16, args=ARGS).build()
    reset_head(vit, classes, seed=0)
    found = fit_head(vit, features, targets, SoftmaxLoss(None, 0.0))
    return vit.head(features).softmax(1).detach(), *found


@pytest.mark.parametrize("small", [0, 2**25], ids=["fp32", "fp64"])
def test_a_head_of_many_samples_is_that_of_all_of_them(small, monkeypatch):
    """The ridge from some of them; then a few steps over all, chunk by chunk."""
    monkeypatch.setattr(head, "SMALL", small)
    generator = torch.Generator().manual_seed(0)
    targets = torch.randint(0, 4, (600,), generator=generator)
    features = torch.randn(600, 32, generator=generator) + 1.5 * torch.nn.functional.one_hot(targets, 32) - 3
    whole, loss, ridge = fitted(features, targets, 4)
    monkeypatch.setattr(head, "CELLS", 4 * 100)
    chunks, *same = fitted(features, targets, 4)
    torch.testing.assert_close(chunks, whole, rtol=0, atol=1e-3)
    assert same == pytest.approx([loss, ridge], abs=1e-5)
    monkeypatch.setattr(head, "RIDGES", (ridge,))  # half of the samples would pick a stronger one
    monkeypatch.setattr(head, "MANY", 300)
    monkeypatch.setattr(head, "LAST_STEPS", 0)
    some, *_ = fitted(features, targets, 4)
    monkeypatch.setattr(head, "LAST_STEPS", 20)
    many, *_ = fitted(features, targets, 4)
    assert (some - whole).abs().max() > 0.05, "half of the samples say something else"
    torch.testing.assert_close(many, whole, rtol=0, atol=1e-2)


@pytest.mark.parametrize("many", [10**5, 100], ids=["all", "some"])
def test_a_head_does_not_depend_on_the_order_of_the_classes(many, monkeypatch):
    """Where they take turns, every fifth sample is of one of two classes, and every second one of half of them."""
    monkeypatch.setattr(head, "MANY", many)
    generator = torch.Generator().manual_seed(0)
    targets = torch.arange(200) % 10
    features = torch.randn(200, 32, generator=generator) + 2 * torch.nn.functional.one_hot(targets, 32)
    by_class = targets.argsort(stable=True)
    turns, *found = fitted(features, targets, 10)
    sorted_, *wanted = fitted(features[by_class], targets[by_class], 10)
    assert found == pytest.approx(wanted, abs=1e-4)
    torch.testing.assert_close(turns[by_class], sorted_, rtol=0, atol=2e-3)


def test_the_ridge_is_picked_on_held_out_samples():
    """Noise alone in 32 dimensions of 60 samples: only the strongest ridge does not overfit it."""
    generator = torch.Generator().manual_seed(0)
    features, targets = torch.randn(60, 32, generator=generator), torch.arange(60) // 2 % 3
    vit = Backbone("vit_tiny_patch16_224", pretrained=False, image_size=16, args=ARGS).build()
    reset_head(vit, 3, seed=0)
    assert fit_head(vit, features, targets, SoftmaxLoss(None, 0.0))[1] == 0.1


def test_the_demo_backbone_is_small_and_half_precision():
    import riftcli

    file = Path(riftcli.__file__).parent / "assets" / "demo_vit" / "model.safetensors"
    tensors = load_file(file)
    assert {t.dtype for t in tensors.values()} == {torch.float16}
    assert 1e6 < sum(t.numel() for t in tensors.values()) < 3e6
    assert file.stat().st_size < 4e6
    assert next(Backbone("asset:demo_vit").build().parameters()).dtype == torch.float32


# ---- messages


def test_unknown_model_names_the_nearest():
    assert refused(Backbone("vit_tiny_patch16_225")) == (
        "model.name vit_tiny_patch16_225: timm has no such model (did you mean 'vit_tiny_patch16_224'?); "
        "`timm.list_models('vit*')` lists them"
    )


def test_offline_is_an_error_never_random_weights():
    name = "vit_tiny_patch16_224.augreg_in21k_ft_in1k"
    message = refused(Backbone(name))
    assert message.startswith(f"model.name {name}: pretrained weights could not be downloaded (HF_HUB_OFFLINE is set): ")
    assert message.endswith(
        "; get the .safetensors file on a machine with a network and pass --set model.weights=FILE "
        "(model.pretrained=false would train from scratch)"
    )


@pytest.mark.parametrize(
    ("args", "what"),
    [
        ({"depth": 3}, "12 tensors are missing from them, e.g. blocks.2.norm1.weight"),
        ({"depth": 1}, "12 tensors have no place in the model, e.g. blocks.1.attn.proj.bias"),
    ],
)
def test_weights_that_do_not_fit_are_never_half_loaded(tiny_weights, args, what):
    wish = Backbone("vit_tiny_patch16_224", weights=str(tiny_weights), image_size=16, args={**ARGS, **args})
    assert refused(wish) == (
        f"weights {tiny_weights} do not fit vit_tiny_patch16_224: {what}; check model.name and model.args against the file"
    )


def test_weights_of_another_width(tiny_weights):
    wish = Backbone("vit_tiny_patch16_224", weights=str(tiny_weights), image_size=16, args={**ARGS, "embed_dim": 64})
    assert refused(wish).startswith(f"weights {tiny_weights} do not fit vit_tiny_patch16_224: size mismatch for ")


def test_weight_files_that_are_not(tmp_path: Path):
    make = lambda w: Backbone("vit_tiny_patch16_224", weights=str(w), image_size=16, args=ARGS)  # noqa: E731
    assert refused(make(tmp_path / "no.safetensors")) == f"model.weights {tmp_path}/no.safetensors: no such file or folder"
    (tmp_path / "w.pth").write_bytes(b"x")
    assert refused(make(tmp_path / "w.pth")) == (
        f"model.weights {tmp_path}/w.pth: only .safetensors is read (other formats can run code when loaded)"
    )
    assert refused(make(tmp_path)) == f"model.weights {tmp_path}: expected exactly one .safetensors file in it, found 0"
    (tmp_path / "bad.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0garbage!")
    assert refused(make(tmp_path / "bad.safetensors")).startswith(
        f"weights {tmp_path}/bad.safetensors: not a readable safetensors file ("
    )
    assert refused(Backbone(f"local-dir:{tmp_path}")) == (
        f"model.name local-dir:{tmp_path}: no config.json in {tmp_path}; expected a timm model folder"
    )
    assert refused(Backbone("asset:nothing")) == "model.name asset:nothing: riftcli ships no such model"


def test_impossible_options():
    assert refused(Backbone("vit_tiny_patch16_224", pretrained=False, args={"depht": 3})).startswith(
        "model vit_tiny_patch16_224 cannot be built with these options: "
    )
