"""Two-tower models: built from open_clip's folders, saved so that open_clip gives the same embeddings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from vision_language import opened, write_clip, write_hf_clip

from riftcli.data.transforms import Preprocessing
from riftcli.errors import EnvironmentError, ModelError
from riftcli.models.backbone import Backbone
from riftcli.models.image_text import class_embeddings, set_zero_shot_head, text_tower
from riftcli.models.open_clip_folder import open_clip_name, open_clip_state, save_image_tower, timm_name
from riftcli.models.weights import check_saved, load_saved, read_config, save_folder, write_tensors

TEXTS = ["a photo of a shirt.", "sandals"]

FORMS = {
    "plain": {},
    "quick_gelu": {"quick_gelu": True},
    "dinov2_like": {"vision_cfg": {"no_ln_pre": True, "ls_init_value": 0.1, "norm_kwargs": {"eps": 1e-6}}},
    "avg_pool": {"vision_cfg": {"pool_type": "avg"}},
    "custom_text": {"custom_text": True, "text_cfg": {"pool_type": "last", "proj_type": "linear"}},
    "timm_tower": {
        "vision_cfg": {
            "timm_model_name": "test_vit",
            "timm_pool": "avg",
            "timm_proj": "linear",
            "image_size": 160,
        }
    },
    "siglip_like": {
        "embed_dim": 64,
        "custom_text": True,
        "init_logit_bias": -10.0,
        "vision_cfg": {"timm_model_name": "test_vit", "timm_pool": "map", "timm_proj": "none", "image_size": 160},
        "text_cfg": {"no_causal_mask": True, "pool_type": "last", "proj_type": "linear", "proj_bias": True},
    },
}


@pytest.mark.parametrize("form", FORMS)
def test_embeddings_are_those_of_open_clip_to_the_last_bit(tmp_path, form):
    folder = write_clip(tmp_path / f"tiny-{form}", **FORMS[form])
    clip, tokenizer = opened(folder)
    vit = Backbone(f"open_clip:local-dir:{folder}").build()
    images = torch.randn(3, *vit.pretrained_cfg["input_size"])
    assert torch.equal(vit.forward_head(vit.forward_features(images), pre_logits=True), clip.encode_image(images, normalize=True))
    tower = text_tower(vit)
    assert torch.equal(tower(tower.format.tokenize(TEXTS)), clip.encode_text(tokenizer(TEXTS), normalize=True))
    assert vit.num_features == FORMS[form].get("embed_dim", 24) and torch.equal(tower.scale, clip.logit_scale.exp())

    state = open_clip_state(vit)
    assert state.keys() == clip.state_dict().keys()
    assert all(torch.equal(state[name], value) for name, value in clip.state_dict().items())


@pytest.mark.parametrize("form", ["plain", "quick_gelu", "dinov2_like", "timm_tower"])
def test_a_saved_folder_opens_in_open_clip_with_the_same_embeddings(tmp_path, form):
    vit = Backbone(f"open_clip:local-dir:{write_clip(tmp_path / f'start-{form}', **FORMS[form])}").build(2)
    with torch.no_grad():
        for parameter in vit.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    preprocessing = Preprocessing.of_model(vit, None)
    save_folder(tmp_path / "saved", vit, ["cat", "dog"], preprocessing, {"rift": {"epoch": 3}})
    check_saved(tmp_path / "saved", vit, preprocessing.input_size)

    clip, tokenizer = opened(tmp_path / "saved")
    images = torch.randn(3, *preprocessing.input_size)
    assert torch.equal(clip.encode_image(images, normalize=True), vit.forward_head(vit.forward_features(images), pre_logits=True))
    assert torch.equal(clip.encode_text(tokenizer(TEXTS), normalize=True), text_tower(vit)(tokenizer(TEXTS)))
    assert clip.visual.preprocess_cfg["mean"] == [0.5, 0.5, 0.5]

    again = load_saved(tmp_path / "saved")
    assert all(torch.equal(again.state_dict()[name], value) for name, value in vit.state_dict().items())
    assert read_config(tmp_path / "saved")["label_names"] == ["cat", "dog"]


@pytest.mark.parametrize("form", ["plain", "quick_gelu", "dinov2_like", "avg_pool"])
def test_the_image_tower_as_a_timm_folder(tmp_path, form):
    import timm

    vit = Backbone(f"open_clip:local-dir:{write_clip(tmp_path / f'tower-{form}', **FORMS[form])}").build()
    assert save_image_tower(tmp_path / "tower", vit, Preprocessing.of_model(vit, None), write_tensors)
    tower = timm.create_model(f"local-dir:{tmp_path / 'tower'}", pretrained=True).eval()
    images = torch.randn(3, 3, 32, 32)
    found = torch.nn.functional.normalize(tower(images), dim=-1)
    torch.testing.assert_close(found, vit.forward_head(vit.forward_features(images), pre_logits=True), rtol=1e-5, atol=1e-6)


def test_a_text_tower_from_hugging_face_reads_the_files_beside_it(tmp_path, monkeypatch):
    """open_clip would ask the hub, or look where it is started; padding that no row needs is left out, which only rounds."""
    folder = write_hf_clip(tmp_path / "tiny-hf")
    vit = Backbone(f"open_clip:local-dir:{folder}").build(2)
    texts, images = ["a photo of the number 7", "a shirt ."], torch.randn(2, 3, 32, 32)

    def compare(place):
        monkeypatch.chdir(place)
        clip, tokenizer = opened(Path("."))
        assert torch.equal(tokenizer(texts), vit.text_tower.format.tokenize(texts))
        found = vit.text_tower(vit.text_tower.format.tokenize(texts))
        torch.testing.assert_close(clip.encode_text(tokenizer(texts), normalize=True), found, rtol=1e-5, atol=1e-6)
        own = vit.forward_head(vit.forward_features(images), pre_logits=True)
        assert torch.equal(clip.encode_image(images, normalize=True), own)

    compare(folder)
    with torch.no_grad():
        for parameter in vit.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    preprocessing = Preprocessing.of_model(vit, None)
    save_folder(tmp_path / "saved", vit, ["x", "y"], preprocessing)
    check_saved(tmp_path / "saved", vit, preprocessing.input_size)
    compare(tmp_path / "saved")


def test_another_resolution_interpolates_the_positions_as_open_clip_does(tmp_path):
    import open_clip

    folder = write_clip(tmp_path / "tiny-larger")
    vit = Backbone(f"open_clip:local-dir:{folder}", image_size=48).build()
    clip = open_clip.create_model(f"local-dir:{folder}", force_image_size=48).eval()
    images = torch.randn(2, 3, 48, 48)
    assert torch.equal(vit.forward_head(vit.forward_features(images), pre_logits=True), clip.encode_image(images, normalize=True))


@pytest.mark.parametrize("feature", ["cls", "avg"])
def test_the_image_tower_alone_before_the_projection(tmp_path, feature):
    folder = write_clip(tmp_path / f"tiny-{feature}")
    vit = Backbone(f"open_clip:local-dir:{folder}", feature=feature).build()
    clip, _ = opened(folder)
    images = torch.randn(2, 3, 32, 32)
    tokens = clip.visual.transformer(clip.visual._embeds(images))
    tokens = clip.visual.ln_post(tokens)
    expected = tokens[:, 0] if feature == "cls" else tokens[:, 1:].mean(1)
    assert text_tower(vit) is None
    torch.testing.assert_close(vit.forward_head(vit.forward_features(images), pre_logits=True), expected)


def test_the_zero_shot_head_is_open_clips_times_the_scale(tmp_path):
    """open_clip's own builder leaves the scale out, which argmax does not see and calibration does."""
    import open_clip

    folder = write_clip(tmp_path / "tiny-head")
    clip, tokenizer = opened(folder)
    names, templates = ["shirt", "bag", "boot"], ["a photo of a {}.", "{} on a table", "a {}"]
    functions = [lambda c, t=t: t.format(c) for t in templates]
    with torch.no_grad():
        expected = open_clip.build_zero_shot_classifier(clip, tokenizer, names, functions, device="cpu").T
    vit = Backbone(f"open_clip:local-dir:{folder}").build(3)
    texts = [[t.format(name) for t in templates] for name in names]
    torch.testing.assert_close(class_embeddings(text_tower(vit), texts, torch.device("cpu")), expected)
    set_zero_shot_head(vit, texts)
    torch.testing.assert_close(vit.get_classifier().weight, (clip.logit_scale.exp() * expected).detach())
    assert not vit.get_classifier().bias.any()


def test_names_of_tensors_go_there_and_back():
    pairs = {
        "transformer.resblocks.11.attn.in_proj_weight": "blocks.11.attn.qkv.weight",
        "transformer.resblocks.0.ln_2.bias": "blocks.0.norm2.bias",
        "transformer.resblocks.0.ls_1.gamma": "blocks.0.ls1.gamma",
        "transformer.resblocks.3.mlp.c_proj.weight": "blocks.3.mlp.fc2.weight",
        "ln_pre.weight": "norm_pre.weight",
        "ln_post.bias": "norm.bias",
        "class_embedding": "cls_token",
        "conv1.weight": "patch_embed.proj.weight",
    }
    for theirs, ours in pairs.items():
        assert timm_name(theirs) == ours and open_clip_name(ours) == theirs


def test_long_captions_are_counted(tmp_path):
    tower = text_tower(Backbone(f"open_clip:local-dir:{write_clip(tmp_path / 'tiny-long')}").build())
    fits = "a " * 14  # 16 places: start and end take two
    assert tower.format.too_long([fits, fits + "a", "a"]) == 1


def message(name: str, **options) -> str:
    with pytest.raises(ModelError) as caught:
        Backbone(name, **options).build()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_wrong_names_get_one_line(tmp_path):
    assert message("open_clip:ViT-B-61/openai").startswith(
        "model.name open_clip:ViT-B-61/openai: open_clip has no model 'ViT-B-61' (did you mean 'ViT-B-16'?)"
    )
    assert "no weights 'laion400m_e23' (did you mean 'laion400m_e32'?)" in message("open_clip:ViT-B-16/laion400m_e23")
    assert "a tag is needed; open_clip has ViT-B-16 with: openai" in message("open_clip:ViT-B-16")
    assert message("open_clip:ViT-B-16/openai").endswith("use open_clip:ViT-B-16-quickgelu/openai")
    assert "HF_HUB_OFFLINE is set" in message("open_clip:ViT-B-16/laion400m_e32")
    assert "no open_clip_config.json in" in message(f"open_clip:local-dir:{tmp_path}")
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"embed_dim": 2}))
    assert "no model_cfg in it" in message(f"open_clip:local-dir:{tmp_path}")
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": {"embed_dim": 2}}))
    assert "(other formats can run code when loaded)" in message(f"open_clip:local-dir:{tmp_path}")
    assert "model.args: open_clip models take none, got depth" in message("open_clip:ViT-B-16/openai", args={"depth": 2})
    resnet = message("open_clip:RN50", pretrained=False)
    assert resnet.endswith("its image tower is a ModifiedResNet; vision transformers and timm's networks are read")
    assert "a captioner (CoCa) has a third tower" in message("open_clip:coca_ViT-B-32", pretrained=False)


def test_weights_of_another_model_are_refused(tmp_path):
    folder = write_clip(tmp_path / "tiny-narrow")
    other = write_clip(tmp_path / "tiny-wide", vision_cfg={"width": 64})
    weights = str(other / "open_clip_model.safetensors")
    assert f"weights {weights} do not fit" in message(f"open_clip:local-dir:{folder}", weights=weights)


def test_without_the_extra_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "open_clip", None)
    with pytest.raises(EnvironmentError, match=r"pip install 'riftcli\[clip\]'"):
        Backbone("open_clip:ViT-B-16/openai").build()
