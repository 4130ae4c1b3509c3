"""From files to pixels, and what training does to them. No torch here."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from riftcli.recipe.section import Section


class InputSection(Section):
    """From files to pixels. The defaults decode every image completely, each time."""

    bit_depth: int | None = Field(
        None, ge=9, le=16, description="significant bits of 16-bit grey images, scaled to 8; null refuses them"
    )
    resize: Literal["auto", "tensor", "pil"] = Field(
        "auto",
        description="pil: to the bit as timm does with Pillow; tensor: by torchvision on uint8 tensors, several times as fast, "
        "other in one pixel of 200, by 1 or 2 of 255; auto: tensor for augmented training images, pil wherever is evaluated",
    )
    draft: bool = Field(False, description="let the JPEG decoder shrink large images first: faster, slightly other pixels")
    cache: str | None = Field(None, description="folder that keeps decoded, resized images; null decodes every time")
    cache_short_side: int | None = Field(
        None, gt=0, description="pixels of the kept training images; null keeps what the transform needs"
    )
    check_images: Literal["exists", "decode"] = Field("exists", description="decode: read every image before training starts")
    on_bad_image: Literal["fail", "skip"] = Field(
        "fail", description="skip: take unreadable images out before training, count and report them"
    )
    max_bad: float = Field(0.01, ge=0, lt=1, description="share of a split that may be skipped")

    def resize_of(self, augment: AugmentSection | None) -> Literal["tensor", "pil"]:
        """Of images that are augmented so, if they are."""
        return self.evaluation_resize if augment is None or augment.off else self.training_resize

    @property
    def evaluation_resize(self) -> Literal["tensor", "pil"]:
        """Of images that are not augmented."""
        return "tensor" if self.resize == "tensor" else "pil"

    @property
    def training_resize(self) -> Literal["tensor", "pil"]:
        """Of augmented ones."""
        return "pil" if self.resize == "pil" else "tensor"


class AugmentSection(Section):
    """Training augmentation. The defaults are off."""

    flip: float = Field(0.0, ge=0, le=1, description="probability of a horizontal flip")
    crop_min_area: float = Field(1.0, gt=0, le=1, description="random resized crop down to this share of the area; 1 is off")
    vertical_flip: float = Field(0.0, ge=0, le=1, description="probability of a vertical flip, for images without an up")
    rotate: float = Field(0.0, ge=0, le=180, description="degrees that an image is turned by at most, either way; 0 is off")
    color_jitter: float = Field(0.0, ge=0, description="brightness, contrast and saturation jitter; 0 is off")
    rand_augment: int | None = Field(
        None, ge=0, le=30, description="RandAugment with two operations at this magnitude, usually 9; null is off"
    )
    mixup: float = Field(0.0, ge=0, le=10, description="mix images in pairs, with shares from Beta(mixup, mixup); 0 is off")
    cutmix: float = Field(
        0.0,
        ge=0,
        le=10,
        description="paste a box of another image, its area from Beta(cutmix, cutmix); 0 is off; with mixup: either",
    )
    views: int | None = Field(
        None,
        ge=1,
        description="so many fixed augmented views of each image, in turn, so that pretrained features can be cached; "
        "null draws anew in every epoch",
    )

    @property
    def mixed(self) -> bool:
        """True when the task's images are mixed with each other, after what is done to each of them."""
        return self.mixup > 0 or self.cutmix > 0

    @property
    def of_one_image(self) -> dict[str, Any]:
        """What is done to each image, as TrainTransform takes it."""
        return self.model_dump(exclude={"views", "mixup", "cutmix"})

    @property
    def off(self) -> bool:
        """True when an image by itself is the same in every epoch."""
        moved = self.flip or self.vertical_flip or self.rotate or self.color_jitter
        return not moved and self.crop_min_area == 1 and self.rand_augment is None
