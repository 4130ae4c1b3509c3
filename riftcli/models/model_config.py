"""config.json of a model folder: read, and checked before anything is built of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from riftcli.data.transforms import check_preprocessing
from riftcli.errors import ModelError
from riftcli.files import MEGABYTE, read_json
from riftcli.recipe.model_args import check_model_args

MOST_CLASSES = 1_000_000


def read_model_config(path: Path) -> dict[str, Any]:
    """The object in a config.json (or rift.json); raise ModelError for what no model of timm's or of ours has."""
    try:
        config = read_json(path, 64 * MEGABYTE)
    except FileNotFoundError:
        raise ModelError(f"{path.parent}: no {path.name}; expected a run folder or a timm model folder") from None
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: not a JSON object ({error})") from error
    for key, kind in {"pretrained_cfg": dict, "model_args": dict, "rift": dict, "label_names": list}.items():
        if not isinstance(config.get(key) or kind(), kind):
            raise ModelError(f"{path}: {key} is not {'a list' if kind is list else 'an object'}; get the folder again")
    try:
        return {**config, "num_classes": _check(config)}
    except ValueError as error:
        raise ModelError(f"{path}: {error}; get the folder again") from error


def _check(config: dict[str, Any]) -> int:
    """The number of classes; raise ValueError."""
    own = config.get("pretrained_cfg") or config  # older folders of timm have one level
    classes, names = config.get("num_classes", own.get("num_classes", 0)), config.get("label_names") or []
    if isinstance(classes, bool) or not isinstance(classes, int) or not 0 <= classes <= MOST_CLASSES:
        raise ValueError(f"num_classes must be a whole number from 0 to {MOST_CLASSES}, got {str(classes)[:40]}")
    if not all(isinstance(name, str) for name in names):
        raise ValueError("label_names must be texts")
    if "rift" in config and names and (len(names) != classes or len(set(names)) < len(names)):
        raise ValueError(f"{len(names)} label_names, {len(set(names))} of them different, for {classes} classes")
    adapter = (config.get("rift") or {}).get("adapter")
    if adapter is not None and not (isinstance(adapter, dict) and isinstance(adapter.get("name"), str)):
        raise ValueError("rift.adapter names no adapter")
    resize = (config.get("rift") or {}).get("resize", "pil")
    if resize not in ("pil", "tensor"):
        raise ValueError(f"rift.resize must be pil or tensor, got {str(resize)[:40]}")
    check_model_args(config.get("model_args") or {})
    check_preprocessing(own)
    return classes
