"""A tiny vision-language model in open_clip's own form, and captions for the shipped clothes."""

from __future__ import annotations

import json
from pathlib import Path

import torch

VISION = {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8}
TEXT = {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}


def write_clip(folder: Path, seed: int = 5, **changes) -> Path:
    """A folder that open_clip reads, with random weights; changes: of its model_cfg, e.g. quick_gelu=True."""
    import open_clip
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    vision, text = {**VISION, **changes.pop("vision_cfg", {})}, {**TEXT, **changes.pop("text_cfg", {})}
    model_cfg = {"embed_dim": 24, "vision_cfg": vision, "text_cfg": text, **changes}
    registered = folder / f"{folder.name}.json"
    registered.write_text(json.dumps(model_cfg))
    open_clip.add_model_config(registered)
    torch.manual_seed(seed)
    clip = open_clip.create_model(folder.name, pretrained_text=False)
    for parameter in clip.parameters():
        if parameter.dim():
            parameter.data += 0.1 * torch.randn_like(parameter)
    registered.unlink()
    seen = {"size": 32, "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25], "interpolation": "bicubic", "resize_mode": "shortest"}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": model_cfg, "preprocess_cfg": seen}))
    save_file({k: v.contiguous() for k, v in clip.state_dict().items()}, folder / "open_clip_model.safetensors")
    return folder


def opened(folder: Path):
    """(model, tokenizer) as open_clip reads the folder, in eval mode."""
    import open_clip

    clip = open_clip.create_model(f"local-dir:{folder}").eval()
    return clip, open_clip.get_tokenizer(f"local-dir:{folder}")
