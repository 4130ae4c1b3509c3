"""Optimizer, schedule, loop, and how a run is looked after. No torch here."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from riftcli import catalog
from riftcli.recipe.section import MAX_SEED, Beta, Section


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
    shard_frozen: bool = Field(
        False,
        description="with adapter lora and several ranks: each holds a part of every frozen block (FSDP2), for backbones that do "
        "not fit one GPU; the result is the same",
    )
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
    compile: bool | Literal["auto", "graphs"] = Field(
        "auto",
        description="compile the network that trains, and the pretrained one beside it (torch.compile), where no texts are "
        "read and no strength {ratio} measures gradients: "
        "a minute at the start, for faster steps; auto: on GPUs, where there is a C compiler; graphs: also replay the kernels of "
        "the network that trains as CUDA graphs, for small batches a rank",
    )
    seed: int = Field(0, ge=0, le=MAX_SEED, description="of order, augmentation, dropout and new weights; not of the splits")
    sampler: Literal["shuffle", "balanced"] = Field(
        "shuffle", description="balanced: draw with replacement so that every class is seen equally often"
    )
    workers: Annotated[int, Field(ge=0)] | Literal["auto"] = Field(
        "auto",
        description="processes per rank that read images; auto: the cores of a rank but one, at most 16, or 2 where /dev/shm is "
        "small, none for a few thousand images in memory; the result does not depend on it",
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


class LaunchSection(Section):
    """How a run is looked after. Nothing of it changes the result, and a resumed run may have it otherwise."""

    timeout: float = Field(
        600.0, gt=0, description="seconds in which nothing gets on after which a run of several processes ends, or a data worker"
    )
    save_every_minutes: float | None = Field(None, gt=0, description="also save the state to resume from so often")
    max_time: str | None = Field(
        None, pattern=r"^\d+:[0-5]\d$", description="HH:MM from the start of the command: then save, and end with exit code 143"
    )

    image_memory: Annotated[float, Field(ge=0)] | Literal["auto"] = Field(
        "auto",
        description="GB of memory in which decoded training images are kept from epoch to epoch, by all ranks of a machine "
        "together; auto: a quarter of what is free at the start; 0: decode them every time; no more are kept once only another "
        "quarter is free, and all are given back at half of that",
    )

    @property
    def max_seconds(self) -> float | None:
        """`max_time` in seconds."""
        if self.max_time is None:
            return None
        hours, minutes = self.max_time.split(":")
        return 3600.0 * int(hours) + 60.0 * int(minutes)
