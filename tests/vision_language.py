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
    vision, text = {**VISION, **changes.pop("vision_cfg", {})}, changes.pop("text_cfg", {})
    text = text if changes.pop("only_text_cfg", False) else {**TEXT, **text}
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


def write_captions(root: Path) -> Path:
    """root/images and {reference,test}.csv: small pictures, some with two captions."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(3)
    (root / "images").mkdir(parents=True)
    words = ["red", "green", "blue", "large", "small", "round", "square"]
    for split, count in (("reference", 24), ("test", 9)):
        lines = ["image,caption"]
        for i in range(count):
            name = f"{split}{i:02d}.png"
            pixels = np.full((24, 24, 3), rng.integers(0, 255, 3), dtype="uint8")
            pixels[4 : 8 + i % 12, 6:18] = rng.integers(0, 255, 3)
            Image.fromarray(pixels).save(root / "images" / name)
            for _ in range(1 + i % 2):
                lines.append(f"{name},a {words[rng.integers(7)]} {words[rng.integers(7)]} thing {i}")
        (root / f"{split}.csv").write_text("\n".join(lines) + "\n")
    return root


def two_tower_recipe(model: Path, captions: Path) -> dict:
    """FLYP on digits in a few seconds, with a shifted set, a zero-shot set and captions."""
    digits = {"format": "digits"}
    pairs = {"format": "captions", "root": str(captions), "images": "images"}
    labels = {"reference": "reference.csv", "test": "test.csv"}
    return {
        "model": {"name": f"open_clip:local-dir:{model}"},
        "data": {
            **digits,
            "train": {"from": "train", "limit": 64},
            "val": {"fraction": 0.25, "from": "train"},
            "test": {"from": "test", "limit": 30},
        },
        "prompts": {"templates": ["a photo of a {}.", "{}"]},
        "objective": {"name": "contrastive"},
        "optim": {"lr": 1e-3},
        "train": {"epochs": 2, "batch_size": 16, "workers": 0},
        "eval": {
            "metrics": ["acc", "cka", "ece"],
            "batch_size": 16,
            "zero_shot": [{"format": "demo_fashion", "split": {"from": "test", "limit": 20}, "prompts": {"templates": ["a {}"]}}],
            "shifted": [{**digits, "split": {"from": "test", "limit": 20, "seed": 1}, "name": "other digits"}],
            "captions": [{**pairs, "labels": labels, "split": "test"}],
        },
    }


def with_reference(recipe: dict, captions: Path, **regularizer) -> dict:
    """The same with a reference set and a regularizer that looks at it."""
    labels = {"reference": "reference.csv", "test": "test.csv"}
    reference = {"format": "captions", "root": str(captions), "images": "images", "labels": labels, "split": "reference"}
    return {**recipe, "reference": {**reference, "batch_size": 8}, "regularizer": regularizer}


WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "photo", "of", "the", "number", "shirt", "red", *"0123456789", "."]


def write_hf_clip(folder: Path) -> Path:
    """The same with a text tower from Hugging Face, described by the files beside the weights."""
    import os

    from transformers import BertConfig, BertTokenizerFast

    folder.mkdir(parents=True)
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    BertConfig(vocab_size=len(WORDS), max_position_embeddings=32, **sizes).save_pretrained(folder)
    text = {"hf_model_name": ".", "hf_tokenizer_name": ".", "hf_proj_type": "linear", "hf_pooler_type": "mean_pooler"}
    text |= {"context_length": 12, "hf_model_pretrained": False}
    before = Path.cwd()
    os.chdir(folder)  # open_clip looks for "." where it is started
    try:
        made = write_clip(folder / "weights", text_cfg=text, only_text_cfg=True)
    finally:
        os.chdir(before)
    for name in ("open_clip_config.json", "open_clip_model.safetensors"):
        (made / name).rename(folder / name)
    made.rmdir()
    return folder
