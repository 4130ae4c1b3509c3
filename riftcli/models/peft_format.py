"""LoRA, DoRA, OFT and BOFT in the file format of the peft library, with the head."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from riftcli import files
from riftcli.errors import ModelError
from riftcli.models.layers.butterfly import BoftLinear
from riftcli.models.layers.low_rank import LoraLinear
from riftcli.models.layers.rotated import OftLinear
from riftcli.models.loading import check_values, read_tensors
from riftcli.models.published import check_published, publishing
from riftcli.models.weights import write_tensors

PREFIX = "base_model.model."
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def save_adapter(folder: Path, vit: Any, adapter: dict[str, Any], source: str) -> None:
    """Write what an adapter has inserted, and the head. `adapter`: its resolved keys; source: name of the base model.

    Adapters that the peft library does not know keep their own names, and adapter_config.json says which one it is. peft
    without its CUDA extension reads BOFT with one factor only.
    """
    layers = {name: module for name, module in vit.named_modules() if isinstance(module, LoraLinear | OftLinear | BoftLinear)}
    head = vit.pretrained_cfg.get("classifier") or "head"
    tensors = {f"{PREFIX}{head}.{name}": value for name, value in vit.get_classifier().state_dict().items()}
    if layers:
        config: dict[str, Any] = {"peft_type": "", "task_type": None, "base_model_name_or_path": source, "inference_mode": True}
        config |= {"target_modules": sorted(layers), "modules_to_save": [head]}
        described = {name: _described(layer) for name, layer in layers.items()}
        config |= _of_all({name: own for name, (own, _) in described.items()})
        for name, (_, values) in described.items():
            tensors |= {f"{PREFIX}{name}.{key}": value for key, value in values.items()}
    else:
        config = {"riftcli": adapter, "base_model_name_or_path": source, "modules_to_save": [head]}
    written = {id(p) for module in (vit.get_classifier(), *layers.values()) for p in module.parameters()}
    trained = {name: p for name, p in vit.named_parameters() if p.requires_grad and id(p) not in written}
    tensors |= {f"{PREFIX}{name}": p for name, p in trained.items()}  # beside peft's layers: the scale of two towers
    with publishing(folder) as stage:
        write_tensors(stage / WEIGHTS, tensors)
        files.write_text(stage / CONFIG, json.dumps(config, indent=1))


_PATTERNS = {"r": "rank_pattern", "lora_alpha": "alpha_pattern"}  # where peft keeps what differs between layers


def _of_all(configs: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """One configuration of all layers: that of the first, and patterns for ranks and alphas that are others; name -> keys."""
    first = next(iter(configs.values()))
    patterns = {}
    if first["peft_type"] == "LORA":
        for key, pattern in _PATTERNS.items():
            patterns[pattern] = {name: own[key] for name, own in configs.items() if own[key] != first[key]}
    other = [name for name, own in configs.items() if any(own[k] != v for k, v in first.items() if k not in _PATTERNS)]
    assert not other, f"peft has no patterns for what differs in {other}"
    return first | patterns


def _described(layer: nn.Module) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """(keys of the config, tensors by peft's names) of one layer."""
    if isinstance(layer, OftLinear):
        config = {"peft_type": "OFT", "r": 0, "oft_block_size": layer.size, "use_cayley_neumann": False, "bias": "none"}
        return config, {"oft_R.weight": _effective_oft(layer)}
    if isinstance(layer, BoftLinear):
        factors, _, size, _ = layer.boft_R.shape
        config = {"peft_type": "BOFT", "boft_block_size": size, "boft_block_num": 0, "boft_n_butterfly_factor": factors}
        return {**config, "bias": "none"}, {"boft_R": layer.boft_R, "boft_s": layer.boft_s}
    assert isinstance(layer, LoraLinear)
    # peft knows one pair of factors per layer. Slices become one pair of rank r * slices: the A's in a column, the B's on the
    # block diagonal of their rows; the product is the same.
    rank = layer.rank * len(layer.rows)
    up = layer.base.weight.new_zeros(layer.base.out_features, rank)
    for i, (start, stop) in enumerate(layer.rows):
        up[start:stop, i * layer.rank : (i + 1) * layer.rank] = layer.lora_B[i].detach()
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": layer.scale * rank, "use_rslora": False, "bias": "none"}
    tensors = {"lora_A.weight": layer.lora_A, "lora_B.weight": up}
    if layer.lora_m is not None:
        magnitude = layer.base.weight.norm(dim=1).detach()  # rows without an update keep their norm
        for (start, stop), own in zip(layer.rows, layer.lora_m, strict=True):
            magnitude[start:stop] = own.detach()
        tensors["lora_magnitude_vector"] = magnitude
    return {**config, "use_dora": layer.lora_m is not None}, tensors


def _effective_oft(layer: OftLinear) -> torch.Tensor:
    """The upper triangles after the bound of COFT, which peft would apply in another way."""
    upper: torch.Tensor = layer.upper  # type: ignore[assignment]
    with torch.no_grad():
        return layer.skew()[:, upper[0], upper[1]]


def load_adapter(vit: Any, folder: Path) -> nn.Module:
    """Put an adapter in peft's format onto a built timm model with a head of the right size; ours or made by peft itself.

    Raises ModelError when it is of another kind, or does not fit.
    """
    config, tensors = read_adapter_config(folder), read_tensors(folder / WEIGHTS)
    kind = config.get("peft_type")
    if kind not in ("LORA", "OFT", "BOFT"):
        raise ModelError(f"{folder}: adapters of type {kind} are not read; LORA, OFT and BOFT are")
    _check_lora(config, folder)
    values = {key.removeprefix(PREFIX): value for key, value in tensors.items()}
    check_values(values, values, str(folder))
    used: set[str] = set()
    for name, module in list(vit.named_modules()):
        own = {key.removeprefix(f"{name}."): value for key, value in values.items() if key.startswith(f"{name}.")}
        own = {key: value for key, value in own.items() if key.split(".")[0] in _PARTS}
        if not own or not isinstance(module, nn.Linear):
            continue
        parent, _, attribute = name.rpartition(".")
        setattr(vit.get_submodule(parent), attribute, _rebuilt(module, name, own, config, folder))
        used |= {f"{name}.{key}" for key in own if key in _READ}
    state = dict(_head_values(vit, values, used))
    left = sorted(set(values) - used)
    if left:
        raise ModelError(f"{folder}: {len(left)} tensors have no place in the model, e.g. {left[0]}; is it for another one?")
    try:
        vit.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise ModelError(f"{folder}: does not fit the model: {str(error).splitlines()[-1].strip()}") from error
    return vit


_READ = (
    "lora_A.weight",
    "lora_B.weight",
    "lora_magnitude_vector",
    "lora_magnitude_vector.weight",
    "oft_R.weight",
    "boft_R",
    "boft_s",
)
_PARTS = ("lora_A", "lora_B", "lora_magnitude_vector", "oft_R", "boft_R", "boft_s")


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """adapter_config.json of a folder that is complete; raise ModelError."""
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise ModelError(f"{folder}: no {name}; expected an adapter folder in peft's format")
    check_published(folder)
    try:
        return files.read_json(folder / CONFIG)
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder / CONFIG}: not valid JSON ({error})") from error


def _head_values(vit: Any, values: dict[str, torch.Tensor], used: set[str]) -> Iterator[tuple[str, torch.Tensor]]:
    for key, value in values.items():
        plain = key.replace(".modules_to_save.default.", ".").replace(".modules_to_save.", ".")
        if plain in vit.state_dict() and key not in used:
            used.add(key)
            yield plain, value


_CHANGES_NO_BASE = (None, True, False, "gaussian", "orthogonal", "eva", "mica")  # init_lora_weights, as peft 0.21 has them


def _check_lora(config: dict[str, Any], folder: Path) -> None:
    """Raise ModelError for an adapter that belongs to other base weights than those of the model: pissa, olora, corda, ..."""
    init = config.get("init_lora_weights")
    if init not in _CHANGES_NO_BASE:
        raise ModelError(
            f"{folder}: init_lora_weights '{init}' changes the base weights too, and the folder does not hold them; "
            "merge it where it was trained, by peft's merge_and_unload()"
        )


def _scale(config: dict[str, Any], name: str, rank: int, folder: Path) -> float:
    """The factor of B A of one layer."""
    said, alpha = (_of_layer(config, key, name, folder) for key in _PATTERNS)
    if said != rank and _PATTERNS["r"] in config:
        raise ModelError(
            f"{folder}: {name}.lora_A has rank {rank}, and {CONFIG} says {said}: one of the two files is of another adapter"
        )
    # riftcli 0.1 wrote no patterns, and rank and alpha of the last layer for all: their ratio was the scale of every layer
    return alpha / (said**0.5 if config.get("use_rslora") else said)


def _of_layer(config: dict[str, Any], key: str, name: str, folder: Path) -> float:
    """r or lora_alpha of one layer: by the pattern that names it, else that of all."""
    for known, value in (config.get(_PATTERNS[key]) or {}).items():
        if not re.fullmatch(r"\^?[\w.-]+", known):  # peft reads regular expressions here; from a file they can run for ever
            raise ModelError(f"{folder}: {_PATTERNS[key]} '{known}': a regular expression is not read; name the layers instead")
        if name == known.removeprefix("^") or name.endswith(f".{known}"):
            return value
    return config[key]


def _rebuilt(base: nn.Linear, name: str, own: dict[str, Any], config: dict[str, Any], folder: Path) -> nn.Module:
    layer: nn.Module
    if "oft_R.weight" in own:
        if config.get("use_cayley_neumann", True) or config.get("block_share") or config.get("coft"):
            raise ModelError(f"{folder}: OFT with use_cayley_neumann, block_share or coft is an approximation that is not read")
        triangles = own["oft_R.weight"]
        layer = OftLinear(base, base.in_features // triangles.shape[0], None)
        state = {"oft_R": triangles}
    elif "boft_R" in own:
        factors, _, size, _ = own["boft_R"].shape
        layer = BoftLinear(base, size, factors)
        state = {"boft_R": own["boft_R"], "boft_s": own["boft_s"]}
    else:
        down, up = own["lora_A.weight"], own["lora_B.weight"]
        rank, scale = down.shape[0], _scale(config, name, down.shape[0], folder)
        magnitude = own.get("lora_magnitude_vector", own.get("lora_magnitude_vector.weight"))
        layer = LoraLinear(base, [(0, base.out_features)], rank, scale, 0.0, magnitude is not None)
        state = {"lora_A": down, "lora_B.0": up} | ({} if magnitude is None else {"lora_m.0": magnitude})
    shapes = {key: parameter.shape for key, parameter in layer.named_parameters()}
    wrong = [key for key, value in state.items() if value.shape != shapes[key]]
    if wrong:
        raise ModelError(f"{folder}: {name}.{wrong[0]} is {tuple(state[wrong[0]].shape)}, expected {tuple(shapes[wrong[0]])}")
    layer.load_state_dict({**layer.state_dict(), **state})
    return layer
