"""Pixels: one evaluation transform, stored with the weights, and the training augmentation around it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torchvision.transforms import InterpolationMode, v2

from riftcli.errors import ModelError

MOST_PIXELS = 8_192  # of an image's side


def check_preprocessing(found: Mapping[str, Any]) -> None:
    """Raise ValueError for a value that no transform has; what is missing is timm's default."""
    size = found.get("input_size") or (3, 1, 1)
    sides = [side for side in size if isinstance(side, int)] if isinstance(size, list | tuple) else []
    if len(sides) != 3 or sides[0] not in (1, 3) or not all(1 <= side <= MOST_PIXELS for side in sides):
        raise ValueError(f"input_size must be 3 channels, height and width from 1 to {MOST_PIXELS}, got {str(size)[:60]}")
    known = [mode.value for mode in InterpolationMode]
    if found.get("interpolation", "bicubic") not in known:
        raise ValueError(f"interpolation must be one of {', '.join(known)}, got {str(found['interpolation'])[:40]}")
    for key, low, high in (("crop_pct", 0.05, 2.0), ("mean", -10.0, 10.0), ("std", 1e-6, 1e3)):
        given = found.get(key)
        values = [0.5] if given is None else list(given) if isinstance(given, list | tuple) else [given]
        plain = all(isinstance(v, int | float) and low <= v <= high for v in values)
        if not plain or (given is not None and len(values) != (1 if key == "crop_pct" else sides[0])):
            raise ValueError(
                f"{key} must be {'a number' if key == 'crop_pct' else 'a number per channel'} from {low:g} to {high:g}"
            )


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes the input of the model; the keys are timm's, so that timm builds the same transform."""

    input_size: tuple[int, int, int]
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_pct: float
    crop_mode: str = "center"

    def __post_init__(self) -> None:
        try:
            check_preprocessing(vars(self))
        except ValueError as error:
            raise ModelError(f"the model's preprocessing: {error}; mend it in its config.json, or use another model") from error

    @classmethod
    def of_model(cls, vit: Any, image_size: int | None, crop_pct: float | None = None) -> Preprocessing:
        """The transform of a timm model at the resolution in use."""
        from timm.data import resolve_data_config

        config = resolve_data_config({}, pretrained_cfg=vit.pretrained_cfg)
        _, height, width = config["input_size"]
        if image_size is None and height != width:
            name = vit.pretrained_cfg.get("architecture")
            raise ModelError(
                f"{name}: takes images of {height} x {width} pixels, and only square ones are prepared; set model.image_size"
            )
        size = image_size or height
        return cls(
            input_size=(3, size, size),
            interpolation=config["interpolation"],
            mean=tuple(config["mean"]),
            std=tuple(config["std"]),
            crop_pct=crop_pct or float(config["crop_pct"]),
            crop_mode=config["crop_mode"],
        )

    @property
    def resizing(self) -> str:
        """What is done to an image before it is standardised, in words."""
        sides = {"squash": "both sides", "border": "longer side"}.get(self.crop_mode, "shorter side")
        rest = ", the rest filled with the mean colour" if self.crop_mode == "border" else ""
        whole = int(self.size / self.crop_pct)
        if self.crop_mode == "squash" and whole == self.size:
            return f"{sides} to {whole} px ({self.interpolation})"
        return f"{sides} to {whole} px ({self.interpolation}), centre crop of {self.size} px{rest}"

    @property
    def size(self) -> int:
        """Input height and width in pixels."""
        return self.input_size[1]

    def normalise(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 (n, 3, H, W) -> fp32 standardised, on whatever device the images are."""
        mean = torch.tensor(self.mean, device=images.device).view(1, -1, 1, 1) * 255
        std = torch.tensor(self.std, device=images.device).view(1, -1, 1, 1) * 255
        return (images.float() - mean) / std


def _whole_image(preprocessing: Preprocessing) -> list[Any]:
    """timm's own resize and crop: the shorter side and the centre; both sides at once (squash); the longer side, and the rest
    filled with the mean colour (border).
    """
    from timm.data.transforms_factory import transforms_imagenet_eval

    size = preprocessing.size, preprocessing.size
    steps = transforms_imagenet_eval(
        size, preprocessing.crop_pct, preprocessing.crop_mode, None, preprocessing.interpolation, preprocessing.mean
    )
    return steps.transforms[:-2]  # what follows are the tensor and the standardised pixels


class EvalTransform:
    """Resize and crop the decoded image, as timm does; PIL -> uint8 (3, H, W)."""

    def __init__(self, preprocessing: Preprocessing) -> None:
        self._steps = v2.Compose([*_whole_image(preprocessing), v2.PILToTensor()])

    def __call__(self, image: Image.Image, seed: int = 0) -> torch.Tensor:  # noqa: D102
        return self._steps(image)


class TrainTransform:
    """Random rotation, crop, flips, RandAugment and colour jitter; PIL, seed -> uint8 (3, H, W). The seed alone decides the
    outcome. Rotation comes before the crop, so that less of the black corners is seen.
    """

    def __init__(
        self,
        preprocessing: Preprocessing,
        flip: float = 0.0,
        crop_min_area: float = 1.0,
        color_jitter: float = 0.0,
        vertical_flip: float = 0.0,
        rotate: float = 0.0,
        rand_augment: int | None = None,
    ) -> None:
        interpolation = InterpolationMode(preprocessing.interpolation)
        size = preprocessing.size
        steps: list[Any] = []
        if rotate > 0:
            steps.append(v2.RandomRotation(rotate, InterpolationMode.BILINEAR))
        if crop_min_area < 1:
            steps.append(v2.RandomResizedCrop(size, scale=(crop_min_area, 1.0), interpolation=interpolation))
        else:
            steps += _whole_image(preprocessing)
        if flip > 0:
            steps.append(v2.RandomHorizontalFlip(flip))
        if vertical_flip > 0:
            steps.append(v2.RandomVerticalFlip(vertical_flip))
        if rand_augment is not None:
            steps.append(v2.RandAugment(num_ops=2, magnitude=rand_augment))
        if color_jitter > 0:
            steps.append(v2.ColorJitter(color_jitter, color_jitter, color_jitter))
        self._steps = v2.Compose([*steps, v2.PILToTensor()])

    def __call__(self, image: Image.Image, seed: int) -> torch.Tensor:  # noqa: D102
        # A private stretch of torch's CPU generator: the run's own random numbers (drop path) are not touched.
        generator = torch.default_generator
        state = generator.get_state()
        generator.manual_seed(seed)
        try:
            return self._steps(image)
        finally:
            generator.set_state(state)
