"""On every rank of torchrun, in the folder of r.yaml: the runs that test_sharding.py compares, one after the other."""

from __future__ import annotations

import json
import shutil
import weakref
from pathlib import Path

import torch

from riftcli import dist, recipe
from riftcli.models.backbone import Backbone
from riftcli.models.sharding import shard_backbone
from riftcli.training.finetune import finetune

SHARDED = ["train.shard_frozen=true"]
NEVER_GOOD_ENOUGH = ["regularizer.strength={keep: 0.9999, tolerance: 0.00001}", "optim.lr=0.03"]


def cut(run: str, target: str) -> None:
    """A finished run as one that was interrupted after its first epoch."""
    shutil.copytree(run, target)
    shutil.rmtree(Path(target, "last/step-00000006"))
    record = Path(target, "run.json")
    record.write_text(json.dumps({**json.loads(record.read_text()), "status": "running"}))


def check_that_nobody_holds_the_whole() -> None:
    """Where the blocks lie on a GPU, what is shared out must be free at once."""
    vit = Backbone(**recipe.load("r.yaml", []).model.model_dump()).build()
    whole = [weakref.ref(p) for p in vit.blocks.parameters()]
    shard_backbone(vit, torch.device("cpu"))
    assert len(whole) == 24 and not any(known() for known in whole)


if __name__ == "__main__":
    finetune(recipe.load("r.yaml", []), Path("whole"), device="cpu")
    check_that_nobody_holds_the_whole()
    finetune(recipe.load("r.yaml", SHARDED), Path("shared"), device="cpu")
    if dist.is_main():
        cut("shared", "cut")
    dist.barrier()
    finetune(recipe.stored(Path("cut/recipe.resolved.yaml")), resume=Path("cut"), device="cpu")
    finetune(recipe.load("r.yaml", [*SHARDED, *NEVER_GOOD_ENOUGH]), Path("never"), device="cpu")
    dist.close()
