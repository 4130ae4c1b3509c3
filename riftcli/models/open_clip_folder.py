"""open_clip's folder of weights, and its names for the tensors of a vision transformer and timm's for the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from riftcli import files
from riftcli.data.transforms import Preprocessing
from riftcli.errors import ModelError
from riftcli.models.image_text import text_tower
from riftcli.models.published import publishing

CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"
NOTE, HEAD, WHOLE = "rift.json", "head.safetensors", "model.safetensors"  # what our own reader needs beside them
READABLE = (WEIGHTS, "open_clip_pytorch_model.safetensors", "model.safetensors")  # in open_clip's own order

# open_clip's name -> timm's; the first that matches the start of what follows `blocks.N.` or the whole name
_STEM = {
    "conv1.weight": "patch_embed.proj.weight",
    "class_embedding": "cls_token",
    "positional_embedding": "pos_embed",
    "ln_pre": "norm_pre",
    "ln_post": "norm",
}
_BLOCK = {
    "ln_1": "norm1",
    "ln_2": "norm2",
    "ls_1": "ls1",
    "ls_2": "ls2",
    "attn.in_proj_": "attn.qkv.",
    "attn.out_proj": "attn.proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_BLOCKS = ("transformer.resblocks.", "blocks.")


def weights_in(folder: Path) -> Path:
    """The weights of an open_clip folder; raise ModelError. Only safetensors: other formats can run code when loaded."""
    found = next((folder / name for name in READABLE if (folder / name).is_file()), None)
    if found is None:
        raise ModelError(f"{folder}: no {WEIGHTS} beside {CONFIG} (other formats can run code when loaded)")
    return found


def to_timm(visual: Any, model_cfg: dict[str, Any], spec: Any) -> Any:
    """open_clip's own vision transformer as timm's, with the same weights; raise ModelError for a form that timm lacks.

    What both compute is the same to the last bit, as long as torch takes the same attention kernel for both.
    """
    import timm
    from open_clip.transformer import VisionTransformer

    own = model_cfg["vision_cfg"]
    if not isinstance(visual, VisionTransformer):
        raise ModelError(
            f"model.name {spec.name}: its image tower is a {type(visual).__name__}; vision transformers and timm's networks are "
            "read"
        )
    odd = [key for key in _WITHOUT_FORM if own.get(key)]
    if odd or visual.attn_pool is not None or (visual.pool_type == "avg" and visual.final_ln_after_pool):
        raise ModelError(f"model.name {spec.name}: its image tower has {odd[0] if odd else 'a pooling'} that timm does not have")
    act = "quick_gelu" if model_cfg.get("quick_gelu") else None
    eps = visual.ln_post.eps
    options = {
        "img_size": visual.image_size[0],
        "patch_size": visual.patch_size[0],
        "embed_dim": own["width"],
        "depth": own["layers"],
        "num_heads": own["width"] // own.get("head_width", 64),
        "mlp_ratio": own.get("mlp_ratio", 4.0),
        "init_values": own.get("ls_init_value"),
        "global_pool": {"pooled": "token" if visual.pool_type == "tok" else "avg", "cls": "token", "avg": "avg"}[spec.feature],
        "fc_norm": False,
        "pre_norm": not own.get("no_ln_pre", False),
        "act_layer": act,
    }
    name = BY_EPS.get(eps, BY_EPS[1e-5])
    vit: Any = timm.create_model(name, num_classes=0, drop_path_rate=spec.drop_path, **options)
    for module in vit.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = eps
    vit.timm_form = (name, options) if eps in BY_EPS else None
    vit.patch_embed.proj.bias = None  # open_clip's patches have none, with or without a norm behind them
    state = {timm_name(name): value for name, value in visual.state_dict().items() if name != "proj"}
    state["cls_token"], state["pos_embed"] = state["cls_token"][None, None], state["pos_embed"][None]
    vit.load_state_dict(state)
    return vit


BY_EPS = {1e-5: "vit_base_patch16_clip_224", 1e-6: "vit_base_patch16_224"}  # timm's names differ in the eps of their norms

# forms of open_clip's blocks that no model with published weights and a timm form has
_WITHOUT_FORM = (
    "block_type",
    "qk_norm",
    "scaled_cosine_attn",
    "scale_heads",
    "scale_attn_inner",
    "scale_attn",
    "scale_fc",
    "act_kwargs",
)


def timm_name(name: str) -> str:
    """`transformer.resblocks.3.ln_1.weight` -> `blocks.3.norm1.weight`."""
    return _renamed(name, _BLOCKS, _STEM, _BLOCK)


def open_clip_name(name: str) -> str:
    """Inverse of timm_name."""
    stem, block = ({new: old for old, new in table.items()} for table in (_STEM, _BLOCK))
    return _renamed(name, _BLOCKS[::-1], stem, block)


def _renamed(name: str, blocks: tuple[str, str], stem: dict[str, str], block: dict[str, str]) -> str:
    prefix, table, rest = "", stem, name
    if name.startswith(blocks[0]):
        number, _, rest = name.removeprefix(blocks[0]).partition(".")
        prefix, table = f"{blocks[1]}{number}.", block
    for old, new in table.items():
        if rest == old or rest.startswith(old if old.endswith("_") or old.endswith(".") else f"{old}."):
            return f"{prefix}{new}{rest.removeprefix(old)}"
    return f"{prefix}{rest}"


def open_clip_state(vit: Any) -> dict[str, torch.Tensor]:
    """Every tensor of the two towers by open_clip's names, without the classifier."""
    tower = text_tower(vit)
    assert tower is not None
    native = "timm_model_name" not in vit.open_clip_config["model_cfg"]["vision_cfg"]
    state = dict(tower.clip.state_dict())
    for name, value in vit.state_dict().items():
        if name.startswith(("text_tower.", "class_head.")):
            continue
        if name.startswith("projection."):
            rest = name.removeprefix("projection.")
            state["visual.proj" if native else f"visual.head.{rest}"] = value
        elif not native:
            state[f"visual.trunk.{name}"] = value
        else:
            flat = value[0, 0] if name == "cls_token" else value[0] if name == "pos_embed" else value
            state[f"visual.{open_clip_name(name)}"] = flat
    return state


def save_open_clip(
    folder: Path,
    vit: Any,
    note: dict[str, Any],
    preprocessing: Preprocessing,
    write: Callable[[Path, dict[str, torch.Tensor]], None],
    whole: dict[str, torch.Tensor] | None = None,
) -> None:
    """Write what `open_clip.create_model_and_transforms("local-dir:FOLDER")` reads, with equal embeddings.

    Beside it: head.safetensors, the classifier; rift.json with `note`; files of the tokenizer where it is not open_clip's own.
    whole: every tensor by our names, for a network with inserted layers that open_clip cannot hold; written instead.
    """
    tower = text_tower(vit)
    assert tower is not None
    config = vit.open_clip_config
    size = preprocessing.size
    seen = {
        "size": size,
        "mode": "RGB",
        "mean": list(preprocessing.mean),
        "std": list(preprocessing.std),
        "interpolation": preprocessing.interpolation,
        "resize_mode": {"squash": "squash", "border": "longest"}.get(preprocessing.crop_mode, "shortest"),
    }
    vision = {**config["model_cfg"]["vision_cfg"], "image_size": size}
    texts = {
        CONFIG: {**config, "model_cfg": {**config["model_cfg"], "vision_cfg": vision}, "preprocess_cfg": seen},
        NOTE: note,
    }
    tensors = {WHOLE: whole} if whole is not None else {WEIGHTS: open_clip_state(vit)}
    if vit.num_classes:
        tensors[HEAD] = vit.get_classifier().state_dict()
    with publishing(folder) as stage:
        for name, content in tower.format.files.items():
            files.write_bytes(stage / name, content)
        for name, table in tensors.items():
            write(stage / name, table)
        for name, text in texts.items():
            files.write_text(stage / name, json.dumps(text, indent=2))


def save_image_tower(
    folder: Path, vit: Any, preprocessing: Preprocessing, write: Callable[[Path, dict[str, torch.Tensor]], None]
) -> bool:
    """Write the image tower alone as a timm model folder, whose classifier is CLIP's projection; False where timm has no form of
    it.
    """
    form, projection = getattr(vit, "timm_form", None), getattr(vit, "projection", None)
    weight = getattr(projection, "weight", None)
    if form is None or weight is None:
        return False
    name, options = form
    state = {k: v for k, v in vit.state_dict().items() if not k.startswith(("text_tower.", "class_head.", "projection."))}
    if not options["pre_norm"]:  # timm's patches have a bias there
        state["patch_embed.proj.bias"] = torch.zeros(options["embed_dim"])
    state |= {"head.weight": weight.detach().T, "head.bias": torch.zeros(weight.shape[1])}
    config = {
        "architecture": name,
        "num_classes": weight.shape[1],
        "num_features": options["embed_dim"],
        "global_pool": options["global_pool"],
        "model_args": {key: value for key, value in options.items() if value is not None},
        "pretrained_cfg": {**preprocessing.timm_keys(), "num_classes": weight.shape[1], "classifier": "head"},
    }
    with publishing(folder) as stage:
        files.write_text(stage / "config.json", json.dumps(config, indent=2))
        write(stage / "model.safetensors", state)
    return True
