"""Pixels: one evaluation transform, stored with the weights, and the training augmentation around it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torchvision.transforms import InterpolationMode, v2


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes the input of the model; the keys are timm's, so that timm builds the same transform."""

    input_size: tuple[int, int, int]
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_pct: float
    crop_mode: str = "center"

    @classmethod
    def of_model(cls, vit: Any, image_size: int | None, crop_pct: float | None = None) -> Preprocessing:
        """The transform of a timm model at the resolution in use."""
        from timm.data import resolve_data_config

        config = resolve_data_config({}, pretrained_cfg=vit.pretrained_cfg)
        size = image_size or config["input_size"][1]
        return cls(
            input_size=(3, size, size),
            interpolation=config["interpolation"],
            mean=tuple(config["mean"]),
            std=tuple(config["std"]),
            crop_pct=crop_pct or float(config["crop_pct"]),
            crop_mode="squash" if config.get("crop_mode") == "squash" else "center",
        )

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
    """Resize the shorter side and crop the centre; or both sides at once where a model was trained on squashed images."""
    interpolation, size = InterpolationMode(preprocessing.interpolation), preprocessing.size
    if preprocessing.crop_mode == "squash":
        return [v2.Resize((size, size), interpolation)]
    return [v2.Resize(math.floor(size / preprocessing.crop_pct), interpolation), v2.CenterCrop(size)]


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
