"""What a recipe may say: the sections with their keys, defaults and limits. No torch here."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from riftcli import catalog

STRICT = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())


MAX_SEED = 2**32 - 1  # what scikit-learn takes
Beta = Annotated[float, Field(ge=0, lt=1)]


class Section(BaseModel):
    """A part of a recipe with fixed keys."""

    model_config = STRICT


class ModelSection(Section):
    """The backbone."""

    name: str = Field(
        description="any timm name; local-dir:PATH, hf-hub:NAME and asset:NAME (shipped with riftcli) too; with the extra `clip` "
        "open_clip:NAME/TAG and open_clip:local-dir:PATH, whose text tower comes along"
    )
    pretrained: bool = Field(True, description="false is training from scratch")
    weights: str | None = Field(None, description="a .safetensors file or a folder with one, for offline machines")
    image_size: int | None = Field(None, gt=0, description="pixels, height = width; null takes the model's own")
    feature: Literal["pooled", "cls", "avg"] = Field(
        "pooled",
        description="the (N, D) vector before the head: the model's own (of open_clip models the embedding, of unit length), the "
        "class token, or the patch mean",
    )
    crop_pct: float | None = Field(
        None, gt=0, le=1, description="share of the resized image that the centre crop keeps; null takes the model's own"
    )
    drop_path: float = Field(0.0, ge=0, lt=1, description="stochastic depth rate while training")
    args: dict[str, int | float | bool | str] = Field(
        default_factory=dict, description="further arguments of timm.create_model, e.g. {depth: 6}"
    )


class SplitSection(Section):
    """A split with a limit, or a validation split held out of another."""

    from_: str | None = Field(None, alias="from", description="a split of the data source; default: the key's own name")
    limit: int | None = Field(None, gt=0, description="keep so many samples, classes in proportion")
    fraction: float | None = Field(
        None, gt=0, lt=1, description="hold this share out of the training split (validation or test), stratified"
    )
    folds: int | None = Field(None, ge=2, description="hold out one of so many parts (validation only), stratified")
    fold: int = Field(0, ge=0, description="which of the folds, from 0")
    group: str | None = Field(None, description="column that must not be split, e.g. patient")
    seed: int = Field(0, ge=0, le=MAX_SEED, description="which samples a limit, a fraction or folds draw; apart from train.seed")


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


class PromptsSection(Section):
    """Classes in words, for models with a text tower."""

    templates: str | list[str] = Field(
        "openai80",
        description="a shipped set (openai80, openai7, caltech101, fmow, ...), or templates with {} for the class name",
    )
    class_names: str | list[str] | dict[str, str] | None = Field(
        None,
        description="words for the classes: a list in their order, a mapping, a file with a name a line, or a shipped set; null "
        "takes the data's own, and ImageNet's names for wnids",
    )

    @field_validator("templates")
    @classmethod
    def _have_places(cls, value: str | list[str]) -> str | list[str]:
        from riftcli.recipe.prompts import check_templates

        check_templates(value)
        return value


class OptimSection(Section):
    """The optimizer, by timm's factory."""

    name: str = Field("adamw", description="any optimizer of timm.optim")
    lr: float = Field(1e-4, gt=0, description="peak learning rate")
    weight_decay: float = Field(0.05, ge=0, description="pull towards 0, not on biases and norms")
    layer_decay: float | None = Field(None, gt=0, le=1, description="learning rate decay per block from the head down")
    betas: list[Beta] | None = Field(
        None, min_length=2, max_length=2, description="of Adam and its kin; null takes the optimizer's own"
    )
    momentum: float | None = Field(None, ge=0, lt=1, description="of SGD and its kin; null takes the optimizer's own")
    selective_projection: float | None = Field(
        None,
        gt=0,
        description="Adam-SPD: pull a weight back towards its start where the step leads further away against the gradient's "
        "progress; 1 projects onto the distance before the step",
    )
    clip_grad: float | None = Field(1.0, gt=0, description="L2 norm that the network's gradient is clipped to")


class ScheduleSection(Section):
    """Learning rate over the run, per step."""

    name: Literal["cosine", "linear", "constant"] = Field("cosine", description="shape after the warm-up, down to 0")
    warmup: float = Field(0.05, ge=0, lt=1, description="share of all steps that the rate rises linearly for")
    min_warmup_steps: int = Field(
        2, ge=0, description="the warm-up of a short run is at least so long, unless that were more than half of it; 1 is none"
    )


class TrainSection(Section):
    """The loop."""

    epochs: int = Field(50, gt=0, description="times that every training image is seen")
    batch_size: int = Field(128, gt=1, description="global: over all ranks and accumulated micro-batches")
    micro_batch_size: int | None = Field(None, gt=0, description="samples per rank and forward; null: no accumulation")
    grad_checkpointing: bool = Field(False, description="recompute the blocks in backward: less memory, a third more time")
    precision: Literal["auto", "fp32", "bf16"] = Field("auto", description="auto: bf16 autocast on GPUs that have it")
    head_init: Literal["linear_probe", "zeros", "normal", "zero_shot"] = Field(
        "linear_probe",
        description="linear_probe: fit the head on the pretrained features first; zero_shot: the text tower's, of `prompts`",
    )
    start_from: str | None = Field(
        None,
        description="a finished run whose weights, head included, this one begins with; what is kept is measured against the "
        "pretrained model all the same",
    )
    compile: bool | Literal["auto"] = Field(
        "auto",
        description="compile the network that trains, and the pretrained one beside it (torch.compile): a minute at the start, "
        "for faster steps; auto: on GPUs",
    )
    seed: int = Field(0, ge=0, le=MAX_SEED, description="of order, augmentation, dropout and new weights; not of the splits")
    sampler: Literal["shuffle", "balanced"] = Field(
        "shuffle", description="balanced: draw with replacement so that every class is seen equally often"
    )
    workers: Annotated[int, Field(ge=0)] | Literal["auto"] = Field(
        "auto",
        description="processes per rank that read images; auto: the cores of a rank but one, at most 16, and none where images "
        "lie in memory; the result does not depend on it",
    )
    ema: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="decay of a running average of the weights, e.g. 0.999, which is validated and kept in their place; lower in "
        "the first steps; null keeps the weights themselves",
    )
    on_collapse: Literal["stop", "warn"] = Field(
        "stop", description="when the variance of the features goes to nothing or explodes: end the run, or only warn"
    )
    log_every_steps: int = Field(1, gt=0, description="steps from one line of metrics.jsonl to the next")
    diagnose_every_steps: int | None = Field(
        None,
        gt=0,
        description="steps from one look at a batch's spectrum and CKA to the next, among the logged ones; null is 50, and less "
        "in a run of fewer than 5,000 steps, so that there are a hundred",
    )
    save_every_steps: int | None = Field(None, gt=0, description="also save the state to resume from within an epoch")
    track: list[str] = Field(
        default_factory=list,
        description="also send every line of metrics.jsonl there: tensorboard, wandb, trackio",
        json_schema_extra={"items": {"enum": [*catalog.CATALOG["tracker"]]}},
    )


class EvalSection(Section):
    """What is measured."""

    every_epochs: int = Field(1, gt=0, description="epochs from one validation to the next")
    metrics: list[str] = Field(
        default_factory=lambda: ["acc", "cka"],
        min_length=1,
        description="what is reported; `rift recipes schema` lists them",
        json_schema_extra={"items": {"enum": [*catalog.CATALOG["metric"]]}},
    )
    best: str = Field("acc", description="metric on the validation split that picks the kept weights")
    patience: int | None = Field(None, gt=0, description="stop after so many evaluations without a better one")
    batch_size: int = Field(128, gt=0, description="per rank")
    precision: Literal["fp32", "bf16"] = Field(
        "fp32", description="of every forward that is only looked at; bf16 is faster where a device has it"
    )
    knn_k: int = Field(20, gt=0, description="neighbours of the kNN on the retention sets")
    trajectory: bool = Field(False, description="at every evaluation also ECE, and kNN and CKA on the retention sets")
    cache: str | None = Field(
        "auto",
        description="folder that keeps features, found again by content; auto: the user's own, of 10 GB at most (`rift cache "
        "ls`); null computes them anew",
    )
    group: str | None = Field(None, description="column of the data for the metric worst_group, e.g. region")


class LaunchSection(Section):
    """How a run is looked after. Nothing of it changes the result, and a resumed run may have it otherwise."""

    timeout: float = Field(
        600.0, gt=0, description="seconds in which nothing gets on after which a run of several processes ends, or a data worker"
    )
    save_every_minutes: float | None = Field(None, gt=0, description="also save the state to resume from so often")
    max_time: str | None = Field(
        None, pattern=r"^\d+:[0-5]\d$", description="HH:MM from the start of the command: then save, and end with exit code 143"
    )

    @property
    def max_seconds(self) -> float | None:
        """`max_time` in seconds."""
        if self.max_time is None:
            return None
        hours, minutes = self.max_time.split(":")
        return 3600.0 * int(hours) + 60.0 * int(minutes)


SECTIONS: dict[str, type[Section]] = {
    "model": ModelSection,
    "input": InputSection,
    "augment": AugmentSection,
    "optim": OptimSection,
    "schedule": ScheduleSection,
    "train": TrainSection,
    "eval": EvalSection,
    "launch": LaunchSection,
}
COMPONENTS = {"objective": "cross_entropy", "adapter": "full", "regularizer": "none"}  # kind -> default name
TOP_LEVEL = [
    "model",
    "data",
    "prompts",
    "objective",
    "adapter",
    "regularizer",
    "input",
    "augment",
    "optim",
    "schedule",
    "train",
    "eval",
    "retention",
    "reference",
    "launch",
]
RULES = ["allow_overlap", "allow_missing_classes"]
SPLIT_KEYS = ["format", "train", "val", "test", *RULES]
REFERENCE_KEYS = ["format", "split", "batch_size"]
EVAL_SETS = ["zero_shot", "shifted", "captions"]  # keys of `eval` that hold data sources
SET_KEYS = ["format", "split", "metric", "prompts", "name"]
