"""A backbone by timm or open_clip: built, loaded, wrapped. Never a silent fall back to random weights."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from riftcli.assets import ASSETS
from riftcli.errors import ModelError, did_you_mean
from riftcli.models.loading import recorded_loads
from riftcli.models.model_config import read_model_config
from riftcli.models.published import check_published
from riftcli.models.weights_file import weights_file

OPEN_CLIP = "open_clip:"  # what names of models with two towers start with


@dataclass(frozen=True)
class Backbone:
    """Which model to build: plain values, as a recipe gives them (see recipe.ModelSection)."""

    name: str
    pretrained: bool = True
    weights: str | None = None
    image_size: int | None = None
    feature: str = "pooled"
    crop_pct: float | None = None
    drop_path: float = 0.0
    args: dict[str, Any] = field(default_factory=dict)

    def build(self, num_classes: int = 0) -> nn.Module:
        """The timm model, with a text tower where open_clip made it; raise ModelError rather than return something else."""
        if self.name.startswith(OPEN_CLIP):
            from riftcli.models.open_clip_models import build

            return build(self, num_classes)
        import timm

        name, kwargs = self._timm_name(), self._timm_args()
        overlay = None
        if self._own_weights():
            overlay = {"file": str(weights_file(self.weights)), "url": "", "hf_hub_id": None, "source": ""}

        def create(**options: Any) -> Any:
            return timm.create_model(
                name, pretrained=self.pretrained, num_classes=num_classes, pretrained_cfg_overlay=overlay, **options
            )

        try:
            with recorded_loads(self.weights or self.name) as loads:
                try:
                    vit = create(**kwargs)
                except TypeError as error:
                    if "img_size" not in str(error):
                        raise
                    kwargs.pop("img_size")  # a network of convolutions takes images of any size
                    vit = create(**kwargs)
        except (ModelError, MemoryError):
            raise
        except Exception as error:
            raise _explained(self, name, error) from error
        _check_complete(self, vit, loads)
        if not all(hasattr(vit, part) for part in ("forward_features", "forward_head", "get_classifier", "reset_classifier")):
            raise ModelError(f"model.name {self.name}: not an image model with features and a head")
        # what timm needs beside the name to build it again; hub models bring arguments of their own
        known = {**getattr(vit, "_model_args", {}), **_folder_args(name), **kwargs}
        vit.rift_args = {key: value for key, value in known.items() if key not in ("num_classes", "drop_path_rate")}
        return vit

    def _own_weights(self) -> bool:
        return self.pretrained and self.weights is not None

    def _timm_name(self) -> str:
        if self.name.startswith("asset:"):
            folder = ASSETS / self.name.removeprefix("asset:")
            if not folder.is_dir():
                raise ModelError(f"model.name {self.name}: riftcli ships no such model")
            return f"local-dir:{folder}"
        if self.name.startswith("local-dir:"):
            folder = Path(self.name.removeprefix("local-dir:")).expanduser()
            if not (folder / "config.json").is_file():
                raise ModelError(f"model.name {self.name}: no config.json in {folder}; expected a timm model folder")
            check_published(folder)
            read_model_config(folder / "config.json")
            if self.pretrained and self.weights is None and not (folder / "model.safetensors").is_file():
                what = "no model.safetensors in it (other formats can run code when loaded)"
                raise ModelError(f"model.name {self.name}: {what}; convert them, or name a file with --set model.weights=FILE")
            return f"local-dir:{folder}"
        return self.name

    def _timm_args(self) -> dict[str, Any]:
        kwargs: dict[str, Any] = dict(self.args)
        if self.image_size is not None:
            kwargs["img_size"] = self.image_size
        if self.drop_path:
            kwargs["drop_path_rate"] = self.drop_path
        if self.feature == "cls":
            kwargs["global_pool"] = "token"
        elif self.feature == "avg":
            # without fc_norm=False timm moves the final norm behind the pooling, where the pretrained norm has no place
            kwargs |= {"global_pool": "avg", "fc_norm": False}
        return kwargs


# What published checkpoints hold beside the backbone in use: old heads, pooling that was chosen away, pretraining tokens.
LEFT_OVERS = ("head", "fc", "classifier", "pre_logits", "norm.", "attn_pool", "mask_token")


def _check_complete(spec: Backbone, vit: Any, loads: list[Any]) -> None:
    """Raise ModelError unless the weights filled the whole backbone, and nothing but left-overs had no place in it."""
    if not spec.pretrained:
        return
    source = spec.weights or spec.name
    head = vit.pretrained_cfg.get("classifier") or "head"
    heads = (head,) if isinstance(head, str) else tuple(head)
    missing = [key for result in loads for key in result.missing_keys if not key.startswith(heads)]
    spare = (*heads, *LEFT_OVERS)
    surplus = [key for result in loads for key in result.unexpected_keys if not key.startswith(spare)]
    if missing or surplus:
        what = (
            f"{len(missing)} tensors are missing from them" if missing else f"{len(surplus)} tensors have no place in the model"
        )
        raise ModelError(
            f"weights {source} do not fit {spec.name}: {what}, e.g. {(missing or surplus)[0]}; "
            "check model.name and model.args against the file"
        )


def check_patches(name: str, image_size: int | None, vit: Any) -> None:
    """Raise ModelError for an image size that does not divide into patches: the last pixels would be cut off without a word."""
    embed = getattr(vit, "patch_embed", None)
    cut = getattr(embed, "proj", None)
    if image_size is None or not isinstance(cut, nn.Conv2d) or getattr(embed, "dynamic_img_pad", False):
        return
    if cut.kernel_size != cut.stride or any(cut.padding):  # patches that overlap leave nothing out
        return
    side = cut.stride[0]
    rest = image_size % side
    if rest:
        below, above = image_size - rest, image_size - rest + side
        nearest = f"{below} or {above}" if below else f"{above}"
        raise ModelError(
            f"model.image_size {image_size}: {name} has patches of {side} px, so the last {rest} px would be cut off; "
            f"use {nearest}, or fill up with --set 'model.args={{dynamic_img_pad: true, dynamic_img_size: true}}'"
        )


def _explained(spec: Backbone, name: str, error: Exception) -> ModelError:
    """Say in one line why timm could not build or fill the model, and what to do."""
    import timm

    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    if "Unknown model" in text:
        close = did_you_mean(name.split(".")[0], timm.list_models())
        return ModelError(f"model.name {spec.name}: timm has no such model{close}; `timm.list_models('vit*')` lists them")
    if "Invalid pretrained tag" in text:
        tags = ", ".join(m.partition(".")[2] for m in timm.list_pretrained(f"{name.split('.')[0]}.*"))
        return ModelError(f"model.name {spec.name}: no such weights; timm has: {tags}")
    if "state_dict" in text or "size mismatch" in str(error):
        details = [line.strip() for line in str(error).splitlines()[1:] if line.strip()]
        source = spec.weights or spec.name
        return ModelError(f"weights {source} do not fit {spec.name}: {details[0][:200] if details else text}")
    if type(error).__name__ == "SafetensorError":
        return ModelError(f"weights {spec.weights or spec.name}: not a readable safetensors file ({text})")
    if "unexpected keyword" in text or isinstance(error, TypeError | AssertionError):
        return ModelError(f"model {spec.name} cannot be built with these options: {text}")
    if spec.pretrained and spec.weights is None and not name.startswith("local-dir:"):
        offline = " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE") else ""
        return ModelError(
            f"model.name {spec.name}: pretrained weights could not be downloaded{offline}: {text[:160]}; "
            "get the .safetensors file on a machine with a network and pass --set model.weights=FILE "
            "(model.pretrained=false would train from scratch)"
        )
    return ModelError(f"model.name {spec.name}: {text}")


def _folder_args(name: str) -> dict[str, Any]:
    """model_args of a timm model folder: timm applies them, and our copy must too."""
    if not name.startswith("local-dir:"):
        return {}
    return read_model_config(Path(name.removeprefix("local-dir:")) / "config.json").get("model_args") or {}
