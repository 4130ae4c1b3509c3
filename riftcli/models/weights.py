"""The folder of weights that timm and other tools load."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

from riftcli import catalog, files
from riftcli.data.transforms import Preprocessing
from riftcli.errors import StorageError
from riftcli.models.backbone import Backbone
from riftcli.models.image_text import text_tower
from riftcli.models.loading import load_into, read_tensors
from riftcli.models.model_config import read_model_config
from riftcli.models.open_clip_folder import CONFIG, HEAD, NOTE, READABLE, WHOLE, save_open_clip
from riftcli.models.published import check_published, publishing


def save_folder(
    folder: Path, vit: Any, classes: list[str], preprocessing: Preprocessing, extra: dict[str, Any] | None = None
) -> None:
    """Write config.json and model.safetensors such that `timm.create_model("local-dir:FOLDER", pretrained=True)` gives
    the same logits, class names, image size and transform; a model with a text tower in open_clip's form instead.
    """
    pool = getattr(vit, "global_pool", None)
    config = {
        "architecture": vit.pretrained_cfg["architecture"],
        "num_classes": vit.num_classes,
        "num_features": vit.num_features,
        "global_pool": pool if isinstance(pool, str) else None,
        "label_names": classes,
        "model_args": vit.rift_args,
        "pretrained_cfg": {
            **preprocessing.timm_keys(),
            "num_classes": vit.num_classes,
            "first_conv": vit.pretrained_cfg.get("first_conv"),
            "classifier": vit.pretrained_cfg.get("classifier"),
            "fixed_input_size": vit.pretrained_cfg.get("fixed_input_size", False),
        },
        **(extra or {}),
    }
    config["rift"] = {**config.get("rift", {}), "resize": preprocessing.resize}
    if text_tower(vit) is not None:
        whole = vit.state_dict() if "adapter" in config.get("rift", {}) else None
        save_open_clip(folder, vit, config, preprocessing, write_tensors, whole)
        return
    with publishing(folder) as stage:
        write_tensors(stage / "model.safetensors", vit.state_dict())
        files.write_text(stage / "config.json", json.dumps(config, indent=2))


def write_tensors(path: Path, tensors: dict[str, torch.Tensor], about: dict[str, str] | None = None) -> None:
    """A safetensors file with the mode that the umask asks for (the library writes 0600). about: further metadata."""
    from safetensors.torch import save_file

    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    size = sum(tensor.numel() * tensor.element_size() for tensor in plain.values())
    with files.replacing(path, size) as temporary:
        save_file(plain, temporary, metadata={"format": "pt", **(about or {})})


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a model folder, or what stands for it beside two towers; raise ModelError."""
    check_published(folder)
    if (folder / CONFIG).is_file():
        note = folder / NOTE
        return read_model_config(note) if note.is_file() else {"label_names": [], "num_classes": 0}
    return read_model_config(folder / "config.json")


def model_folder(path: str | os.PathLike[str]) -> Path:
    """The folder of weights of a run, or the folder itself."""
    folder = Path(path).expanduser()
    return folder / "model" if (folder / "model").is_dir() else folder


def load_saved(path: str | os.PathLike[str]) -> nn.Module:
    """The model of a run folder or a model folder, in eval mode.

    The surgery of an adapter that could not be folded into timm's own layers is done again.
    """
    folder = model_folder(path)
    config = read_config(folder)
    spec = config.get("rift", {}).get("adapter")
    if (folder / CONFIG).is_file():
        return _load_two_towers(folder, config, spec).eval()
    if spec is None:
        return Backbone(folder_name(folder)).build(config["num_classes"]).eval()
    vit = Backbone(folder_name(folder), pretrained=False).build(config["num_classes"])
    catalog.adapt(vit, spec)
    load_into(vit, read_tensors(folder / "model.safetensors"), str(folder))
    return vit.eval()


def _load_two_towers(folder: Path, config: dict[str, Any], adapter: dict[str, Any] | None) -> Any:
    vit: Any = Backbone(folder_name(folder), pretrained=adapter is None).build(config["num_classes"])
    if adapter is not None:
        catalog.adapt(vit, adapter)
        load_into(vit, read_tensors(folder / WHOLE), str(folder))
    elif config["num_classes"]:
        load_into(vit.get_classifier(), read_tensors(folder / HEAD), str(folder / HEAD))
    return vit


def folder_name(folder: Path) -> str:
    """What a recipe would call a folder of weights."""
    return f"open_clip:local-dir:{folder}" if (folder / CONFIG).is_file() else f"local-dir:{folder}"


def saved_weights(folder: Path) -> Path | None:
    """The file of weights in a model folder, whoever wrote it; None where there is none."""
    names = READABLE if (folder / CONFIG).is_file() else ("model.safetensors",)
    return next((folder / name for name in names if (folder / name).is_file()), None)


def saved_state(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a saved model by the names of the network in memory; raise ModelError for damaged ones."""
    check_published(folder)
    return load_saved(folder).state_dict() if (folder / CONFIG).is_file() else read_tensors(folder / "model.safetensors")


def _outputs(model: Any, images: torch.Tensor) -> torch.Tensor:
    """Logits, and behind them the embedding of a text and the scale where there is a tower for it; one row."""
    logits, tower = model(images).flatten(), text_tower(model)
    if tower is None:
        return logits
    text = tower(tower.format.tokenize(["a drawing"])).flatten()
    return torch.cat([logits, text, tower.scale[None] / 100])  # as large as an embedding: the tolerance is relative


TOLERANCE = 1e-4  # of logits, against the largest of them


def check_saved(folder: Path, vit: nn.Module, input_size: tuple[int, int, int]) -> None:
    """Raise StorageError unless the folder gives the same outputs as a network in memory."""
    check_outputs(folder, outputs(copy.deepcopy(vit).cpu(), input_size), input_size)


@torch.inference_mode()
def outputs(vit: nn.Module, input_size: tuple[int, int, int]) -> torch.Tensor:
    """What a network on the CPU, which is left in eval mode, gives for one fixed batch. In fp32: a GPU's convolutions round to
    TF32, which a folded weight does in another way.
    """
    images = torch.randn(2, *input_size, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", enabled=False):
        return _outputs(vit.eval(), images)


def check_outputs(folder: Path, expected: torch.Tensor, input_size: tuple[int, int, int]) -> None:
    """Raise StorageError unless the folder gives these outputs: an adapter saved without its head, a merge that does nothing and
    a half-written file all look well until somebody uses them.
    """
    with torch.random.fork_rng(devices=[]):
        got = outputs(load_saved(folder), input_size)
    error = float((got - expected).abs().max())
    if not error <= TOLERANCE * max(1.0, float(expected.abs().max())):
        raise StorageError(
            f"{folder}: the saved weights give other logits than the model in memory (difference {error:.3g}); a full disk, or a "
            "bug: please report it with the recipe"
        )
