"""What a recipe may say: the list of its sections and keys, and the sections about model, splits, words and evaluation."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from riftcli import catalog
from riftcli.recipe.image_sections import AugmentSection, InputSection
from riftcli.recipe.section import MAX_SEED, Section
from riftcli.recipe.training_sections import LaunchSection, OptimSection, ScheduleSection, TrainSection


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
    precision: Literal["fp32", "tf32", "bf16"] = Field(
        "fp32",
        description="of evaluations, for images through whole networks; texts, layers and sharpness stay fp32. tf32 (GPUs) and "
        "bf16 are faster where a device has them",
    )
    knn_k: int = Field(20, gt=0, description="neighbours of the kNN on the retention sets")
    trajectory: bool = Field(False, description="at every evaluation also ECE, and kNN and CKA on the retention sets")
    cache: str | None = Field(
        "auto",
        description="folder that keeps features, found again by content; auto: the user's own, of 10 GB at most (`rift cache "
        "ls`); null computes them anew",
    )
    group: str | None = Field(None, description="column of the data for the metric worst_group, e.g. region")


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
