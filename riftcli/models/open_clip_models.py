"""open_clip models: built with all their weights, the image tower as a timm model, or refused with what to do."""

from __future__ import annotations

import json
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from riftcli.errors import EnvironmentError, ModelError, did_you_mean
from riftcli.files import MEGABYTE, read_json
from riftcli.models.image_text import Projection, TextFormat, TextTower, add_embedding
from riftcli.models.loading import recorded_loads
from riftcli.models.open_clip_folder import CONFIG, to_timm, weights_in
from riftcli.models.weights_file import weights_file

PREFIX, LOCAL, HUB = "open_clip:", "local-dir:", "hf-hub:"
TOKENIZER_FILES = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "spiece.model",
    "tokenizer.model",
)


def require_open_clip() -> Any:
    """The library; raise EnvironmentError that says what to install."""
    try:
        import open_clip
    except ImportError as error:
        raise EnvironmentError(
            "open_clip models need the extra `clip`, which is not installed: pip install 'riftcli[clip]'"
        ) from error
    return open_clip


def build(spec: Any, num_classes: int = 0) -> Any:
    """The image tower as a timm model with the text tower at `.text_tower`, in eval mode; raise ModelError.

    spec: a Backbone whose name is `open_clip:NAME/TAG`, `open_clip:local-dir:FOLDER` or `open_clip:hf-hub:REPO`. With `feature`
    cls or avg it is the image tower alone, before CLIP's projection.
    """
    require_open_clip()
    if spec.args:
        raise ModelError(f"model.args: open_clip models take none, got {', '.join(spec.args)}; leave it out")
    name = spec.name.removeprefix(PREFIX)
    config, source = _config(spec.name, name)
    weights = _weights(spec, name, source)
    clip = _created(spec, config, weights, source)
    vit = _image_tower(clip, config["model_cfg"], spec)
    vit.pretrained_cfg = {**vit.pretrained_cfg, **_timm_preprocessing(config["preprocess_cfg"], clip, spec.name)}
    vit.pretrained_cfg["architecture"] = name if source is None else config.get("name", Path(name.partition(":")[2]).name)
    if spec.feature != "pooled":
        vit.rift_args = {}
        vit.reset_classifier(num_classes)
        return vit
    vit = add_embedding(vit, *_projection(clip, vit))
    del clip.visual
    vit.text_tower = TextTower(clip, _text_format(config, name, source))
    vit.open_clip_config = _portable(config)
    vit.rift_args = {}
    vit.reset_classifier(num_classes)
    return vit.eval()


def _config(full: str, name: str) -> tuple[dict[str, Any], Path | None]:
    """({model_cfg, preprocess_cfg}, the folder it was found in)."""
    open_clip = require_open_clip()
    if name.startswith(LOCAL):
        folder = Path(name.removeprefix(LOCAL)).expanduser()
        if not (folder / CONFIG).is_file():
            raise ModelError(f"model.name {full}: no {CONFIG} in {folder}; expected a folder that open_clip wrote")
        return _read(folder / CONFIG), folder.resolve()
    if name.startswith(HUB):
        from huggingface_hub import hf_hub_download

        try:
            return _read(Path(hf_hub_download(name.removeprefix(HUB), CONFIG))), None
        except Exception as error:  # the hub's own errors are many, and none is about us
            raise ModelError(f"model.name {full}: {CONFIG} could not be fetched: {_first_line(error)}{_offline()}") from error
    short = name.partition("/")[0]
    known = open_clip.get_model_config(short)
    if known is None:
        close = did_you_mean(short, open_clip.list_models())
        raise ModelError(f"model.name {full}: open_clip has no model '{short}'{close}; `open_clip.list_models()` lists them")
    return {"model_cfg": known, "preprocess_cfg": {}}, None


def _read(path: Path) -> dict[str, Any]:
    try:
        config = read_json(path, 16 * MEGABYTE)
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: not a JSON object ({error})") from error
    if not isinstance(config.get("model_cfg"), dict):
        raise ModelError(f"{path}: no model_cfg in it; expected what open_clip writes")
    return {"preprocess_cfg": {}, **config}


def _weights(spec: Any, name: str, source: Path | None) -> str | None:
    """A tag of open_clip, or a file; None without weights."""
    open_clip = require_open_clip()
    if not spec.pretrained:
        return None
    if spec.weights is not None:
        return str(weights_file(spec.weights))
    if source is not None:
        return str(weights_in(source))
    if name.startswith(HUB):
        return None  # open_clip finds them itself
    short, _, tag = name.partition("/")
    tags = open_clip.list_pretrained_tags_by_model(short)
    if tag not in tags:
        what = f"no weights '{tag}'{did_you_mean(tag, tags)}" if tag else "a tag is needed"
        raise ModelError(f"model.name {spec.name}: {what}; open_clip has {short} with: {', '.join(tags) or 'none'}")
    wanted = bool(open_clip.get_pretrained_cfg(short, tag).get("quick_gelu", False))
    if wanted != bool(open_clip.get_model_config(short).get("quick_gelu", False)):
        other = f"{short}-quickgelu" if wanted else short.removesuffix("-quickgelu")
        raise ModelError(
            f"model.name {spec.name}: these weights were trained with {'Quick' * wanted}GELU and this model has another "
            f"activation, so its embeddings would be wrong; use {PREFIX}{other}/{tag}"
        )
    return tag


def _created(spec: Any, config: dict[str, Any], weights: str | None, source: Path | None) -> Any:
    """The whole model by open_clip; every one of its errors in one line."""
    open_clip = require_open_clip()
    name = spec.name.removeprefix(PREFIX)
    if "multimodal_cfg" in config["model_cfg"]:
        raise ModelError(f"model.name {spec.name}: a captioner (CoCa) has a third tower, which is not supported")
    options = {"force_image_size": spec.image_size, "pretrained_text": False}
    try:
        with _quiet(), recorded_loads(weights or spec.name):
            if name.startswith(HUB):
                return open_clip.create_model(name, load_weights=spec.pretrained, require_pretrained=spec.pretrained, **options)
            if source is None:
                return open_clip.create_model(name.partition("/")[0], pretrained=weights, **options)
            with _registered(_resolved(config["model_cfg"], source)) as registered, _full_precision(weights, spec) as file:
                return open_clip.create_model(registered, pretrained=file, **options)
    except ModelError:
        raise
    except Exception as error:
        if isinstance(error, RuntimeError) and "state_dict" in str(error):
            detail = next((line.strip() for line in str(error).splitlines()[1:] if line.strip()), _first_line(error))
            raise ModelError(f"weights {weights} do not fit {spec.name}: {detail[:200]}") from error
        remedy = ""
        if spec.pretrained and spec.weights is None and source is None:
            remedy = "; get the .safetensors file on a machine with a network and pass --set model.weights=FILE"
        raise ModelError(f"model.name {spec.name}: {_first_line(error)[:200]}{_offline()}{remedy}") from error


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _offline() -> str:
    return " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE") else ""


@contextmanager
def _quiet() -> Iterator[None]:
    """open_clip and transformers talk through the root logger and warnings; what matters is checked here."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _resolved(model_cfg: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The configuration with the files of a Hugging Face text tower where they are: open_clip would ask the hub for them."""
    text = dict(model_cfg["text_cfg"])
    if text.get("hf_model_name") and (folder / "config.json").is_file():
        text |= {"hf_model_name": str(folder), "hf_tokenizer_name": str(folder), "hf_model_pretrained": False}
    return {**model_cfg, "text_cfg": text}


@contextmanager
def _registered(model_cfg: dict[str, Any]) -> Iterator[str]:
    """The name by which open_clip knows a configuration inside the block."""
    open_clip = require_open_clip()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"rift-{Path(folder).name}.json"
        path.write_text(json.dumps(model_cfg))
        open_clip.add_model_config(path)
        yield path.stem


@contextmanager
def _full_precision(weights: str | None, spec: Any) -> Iterator[str | None]:
    """The file of weights; where positions are to be interpolated, in fp32: torch cannot do that in half precision on a CPU."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    if weights is None or spec.image_size is None:
        yield weights
        return
    with safe_open(weights, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - the file is no mapping
    if all(tensor.dtype != torch.float16 for tensor in tensors.values()):
        yield weights
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.safetensors"
        save_file({name: t.float() if t.is_floating_point() else t for name, t in tensors.items()}, path)
        yield str(path)


def _image_tower(clip: Any, model_cfg: dict[str, Any], spec: Any) -> Any:
    """The image tower as a timm model without a head."""
    if hasattr(clip.visual, "trunk"):
        trunk = clip.visual.trunk
        if not all(hasattr(trunk, part) for part in ("forward_features", "forward_head", "reset_classifier")):
            raise ModelError(f"model.name {spec.name}: its image tower hands out no features (timm: forward_features)")
        return trunk
    return to_timm(clip.visual, model_cfg, spec)


def _projection(clip: Any, vit: Any) -> tuple[nn.Module, int]:
    """(from the pooled features to the embedding, width of the embedding)."""
    visual = clip.visual
    if hasattr(visual, "trunk"):
        width = int(getattr(clip, "embed_dim", 0) or _embedding_width(visual, vit))
        return visual.head, width
    return Projection(visual.proj), visual.proj.shape[1]


def _embedding_width(visual: Any, vit: Any) -> int:
    size = visual.image_size
    with torch.inference_mode():
        return int(visual.eval()(torch.zeros(1, 3, *size)).shape[-1])


def _timm_preprocessing(config: dict[str, Any], clip: Any, name: str) -> dict[str, Any]:
    """open_clip's evaluation transform in timm's words; raise ModelError for one that we do not have."""
    seen = getattr(clip.visual, "preprocess_cfg", {}) | config
    mode = seen.get("resize_mode", "shortest")
    if mode not in ("shortest", "squash"):
        raise ModelError(f"model.name {name}: its images are resized by '{mode}', which is not supported (shortest, squash)")
    height, width = (clip.visual.image_size,) * 2 if isinstance(clip.visual.image_size, int) else clip.visual.image_size
    if height != width:
        raise ModelError(f"model.name {name}: takes images of {height} x {width} pixels; only square ones are supported")
    return {
        "input_size": (3, height, width),
        "mean": tuple(seen["mean"]),
        "std": tuple(seen["std"]),
        "interpolation": seen.get("interpolation", "bicubic"),
        "crop_pct": 1.0,
        "crop_mode": "squash" if mode == "squash" else "center",
        "url": "",
        "hf_hub_id": None,
        "tag": "",
    }


def _text_format(config: dict[str, Any], name: str, source: Path | None) -> TextFormat:
    """The tokenizer, and the files that a saved model needs for it."""
    open_clip = require_open_clip()
    text = config["model_cfg"]["text_cfg"]
    place = f"{LOCAL}{source}" if source is not None else name.partition("/")[0] if not name.startswith(HUB) else name
    try:
        with _quiet():
            tokenizer = open_clip.get_tokenizer(place)
    except Exception as error:
        raise ModelError(f"model.name {PREFIX}{name}: its tokenizer cannot be read: {_first_line(error)[:200]}") from error
    files: dict[str, bytes] = {}
    if text.get("hf_tokenizer_name") or text.get("hf_model_name"):
        if source is not None:
            files = {item: (source / item).read_bytes() for item in TOKENIZER_FILES if (source / item).is_file()}
        else:
            with tempfile.TemporaryDirectory() as folder:
                tokenizer.tokenizer.save_pretrained(folder)
                files = {path.name: path.read_bytes() for path in Path(folder).iterdir() if path.is_file()}

    def tokenize(texts: list[str], length: int) -> torch.Tensor:
        return tokenizer(texts, context_length=length)

    padding = getattr(getattr(tokenizer, "tokenizer", None), "pad_token_id", 0) or 0
    return TextFormat(tokenize, int(text.get("context_length", 77)), padding, files)


def _portable(config: dict[str, Any]) -> dict[str, Any]:
    """What is written beside saved weights: a Hugging Face text tower is described by the files in the same folder."""
    model_cfg = {**config["model_cfg"], "text_cfg": dict(config["model_cfg"]["text_cfg"])}
    if model_cfg["text_cfg"].get("hf_model_name"):
        model_cfg["text_cfg"] |= {"hf_model_name": ".", "hf_tokenizer_name": ".", "hf_model_pretrained": False}
    return {**config, "model_cfg": model_cfg}
