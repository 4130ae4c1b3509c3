"""Pixels: one evaluation transform, stored with the weights, and the training augmentation around it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torchvision import transforms as v1
from torchvision.transforms import InterpolationMode, v2

from riftcli.errors import ModelError

MOST_PIXELS = 8_192  # of an image's side
Resize = Literal["tensor", "pil"]
Pixels = Image.Image | np.ndarray  # RGB, or uint8 (H, W, 3)
FAST = (InterpolationMode.BILINEAR, InterpolationMode.BICUBIC)  # what torchvision resizes in uint8


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
    """How an image becomes the input of the model; the keys are timm's, so that timm builds the same transform.

    resize: pil, as timm does it; tensor: by torchvision on uint8 tensors, several times as fast. Photographs and drawings differ
    in one pixel of 200, by 1 or 2 of 255; of white noise single pixels of a crop by more, for the two filter rows and columns in
    another order and cut off in between.
    """

    input_size: tuple[int, int, int]
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_pct: float
    crop_mode: str = "center"
    resize: Resize = "pil"

    def __post_init__(self) -> None:
        try:
            check_preprocessing(vars(self))
        except ValueError as error:
            raise ModelError(f"the model's preprocessing: {error}; mend it in its config.json, or use another model") from error

    @classmethod
    def of_model(cls, vit: Any, image_size: int | None, crop_pct: float | None = None, resize: Resize = "pil") -> Preprocessing:
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
            resize=resize,
        )

    def timm_keys(self) -> dict[str, Any]:
        """What timm's configuration of a model has of it."""
        return {key: value for key, value in vars(self).items() if key != "resize"}

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


def _on_tensors(steps: list[Any]) -> list[Any] | None:
    """The same steps for uint8 tensors; None where torchvision has none that are as fast (border, lanczos, ...)."""
    found: list[Any] = []
    for step in steps:
        if isinstance(step, v1.Resize) and step.interpolation in FAST:
            found.append(v2.Resize(step.size, step.interpolation, antialias=True))
        elif isinstance(step, v1.CenterCrop):
            found.append(v2.CenterCrop(step.size))
        else:
            return None
    return found


def shorter_side(image: Image.Image, pixels: int, interpolation: str) -> np.ndarray:
    """An image whose shorter side has so many pixels, as the transforms resize uint8 tensors; uint8 (H, W, 3)."""
    step = v1.Resize(pixels, InterpolationMode(interpolation))
    fast = _on_tensors([step])
    return np.asarray(step(image)) if fast is None else fast[0](as_tensor(image)).permute(1, 2, 0).contiguous().numpy()


def as_image(pixels: Any) -> Any:
    """PIL, whichever it is; what is neither is left alone."""
    if isinstance(pixels, torch.Tensor):
        pixels = pixels.permute(1, 2, 0).numpy()
    return Image.fromarray(pixels) if isinstance(pixels, np.ndarray) else pixels


def as_tensor(pixels: Pixels | torch.Tensor) -> torch.Tensor:
    """uint8 (3, H, W), whichever it is."""
    return pixels if isinstance(pixels, torch.Tensor) else torch.from_numpy(np.array(pixels)).permute(2, 0, 1)


class EvalTransform:
    """Resize and crop the decoded image, as timm does; pixels -> uint8 (3, H, W)."""

    def __init__(self, preprocessing: Preprocessing) -> None:
        steps = _whole_image(preprocessing)
        fast = _on_tensors(steps) if preprocessing.resize == "tensor" else None
        self._steps = [as_image, *steps, v2.PILToTensor()] if fast is None else [as_tensor, *fast, torch.Tensor.contiguous]

    def __call__(self, pixels: Pixels, seed: int = 0) -> torch.Tensor:  # noqa: D102
        return _through(self._steps, pixels)


def _through(steps: list[Any], pixels: Any) -> torch.Tensor:
    for step in steps:
        pixels = step(pixels)
    return pixels


class TrainTransform:
    """Random rotation, crop, flips, RandAugment and colour jitter; pixels, seed -> uint8 (3, H, W). The seed alone decides the
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
        whole = _whole_image(preprocessing)
        fast = preprocessing.resize == "tensor" and interpolation in FAST
        if crop_min_area < 1:
            crop: list[Any] = [
                v2.RandomResizedCrop(preprocessing.size, scale=(crop_min_area, 1.0), interpolation=interpolation, antialias=True)
            ]
        else:
            on_tensors = _on_tensors(whole) if fast else None
            fast, crop = on_tensors is not None, whole if on_tensors is None else on_tensors
        turned = [v2.RandomRotation(rotate, InterpolationMode.BILINEAR)] if rotate > 0 else []
        flips: list[Any] = [v2.RandomHorizontalFlip(flip)] if flip > 0 else []
        flips += [v2.RandomVerticalFlip(vertical_flip)] if vertical_flip > 0 else []
        colours: list[Any] = [] if rand_augment is None else [v2.RandAugment(num_ops=2, magnitude=rand_augment)]
        colours += [v2.ColorJitter(color_jitter, color_jitter, color_jitter)] if color_jitter > 0 else []
        # Of what Pillow does faster (rotation, colours of a small image), or otherwise (rotation), Pillow does it.
        before = [as_image, *turned] if turned or not fast else []
        self._steps = [*before, *([as_tensor] if fast else []), *crop, *flips]
        self._steps += [as_image, *colours] if colours else []
        self._steps += [as_tensor, torch.Tensor.contiguous] if fast else [v2.PILToTensor()]

    def __call__(self, pixels: Pixels, seed: int) -> torch.Tensor:  # noqa: D102
        # A private stretch of torch's CPU generator: the run's own random numbers (drop path) are not touched.
        generator = torch.default_generator
        state = generator.get_state()
        generator.manual_seed(seed)
        try:
            return _through(self._steps, pixels)
        finally:
            generator.set_state(state)
