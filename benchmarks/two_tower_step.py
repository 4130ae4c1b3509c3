"""The cost of keeping beside FLYP: time and activation memory of a step with a reference stream (DiVE paper Tab. 14).

python benchmarks/two_tower_step.py    a two-tower model of 12 + 12 blocks of width 192, 96 px, 16 tokens, batch 16, one thread

Pretrained embeddings of the reference pairs are looked up, as a run does without augmentation, or computed by a frozen copy, as
the paper's code does. Memory is what autograd keeps for the backward pass at its highest, without weights and optimizer.
"""

from __future__ import annotations

import copy
import json
import tempfile
import weakref
from pathlib import Path

import open_clip
import torch
from paired import ratio
from safetensors.torch import save_file

from riftcli import catalog
from riftcli.models.backbone import Backbone
from riftcli.models.classifier import Classifier, frozen_copy
from riftcli.models.image_text import train_towers
from riftcli.protocols import Pairs, RegularizerContext
from riftcli.training.optim import build_optimizer
from riftcli.training.pretrained import embedded
from riftcli.training.step import Step

BATCH = 16
VISION = {"image_size": 96, "layers": 12, "width": 192, "head_width": 64, "patch_size": 16}
TEXT = {"context_length": 16, "vocab_size": 49408, "width": 192, "heads": 3, "layers": 12}


def model():
    """Random weights: the time does not depend on them."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "bench"
        folder.mkdir()
        config = {"embed_dim": 128, "vision_cfg": VISION, "text_cfg": TEXT}
        path = folder / "rift-bench.json"
        path.write_text(json.dumps(config))
        open_clip.add_model_config(path)
        torch.manual_seed(0)
        clip = open_clip.create_model("rift-bench", pretrained_text=False)
        path.unlink()
        (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
        save_file({k: v.contiguous() for k, v in clip.state_dict().items()}, folder / "open_clip_model.safetensors")
        return Backbone(f"open_clip:local-dir:{folder}").build(10)


START = None


def step_of(regularizer: str, beside: int, cached: bool = True, micro: int = BATCH, **fields):
    """One optimizer step of the loop with so many reference pairs."""
    global START
    START = model() if START is None else START
    vit = copy.deepcopy(START)
    config = catalog.component("regularizer", regularizer)(**fields)
    penalty = config.build(RegularizerContext(vit.num_features, torch.device("cpu"), lambda: torch.randn(9, 128)))
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(BATCH + beside, 3, 96, 96, generator=generator)
    lines = vit.text_tower.format.tokenize([f"a photo of thing {i}" for i in range(BATCH + beside)])
    teacher = Classifier(frozen_copy(vit))
    table = embedded(teacher, images[BATCH:], lines[BATCH:], False) if beside else None

    def pretrained(index, x, tokens=None):
        rows = index if index.dim() == 1 else index[:, 0]
        found = (
            Pairs(table.images[rows], table.texts[rows], table.scale) if cached else embedded(teacher, x, lines[: len(x)], False)
        )
        return found if tokens is not None else found.images

    train_towers(vit, "both", True, True)
    vit.get_classifier().requires_grad_(False)
    tokens = {"task": lambda numbers: lines[:BATCH][numbers]}
    if getattr(penalty, "pairs", False):
        tokens["reference"] = lambda numbers: lines[BATCH:][numbers]
    objective = catalog.component("objective", "contrastive")().build(torch.arange(BATCH) % 10, 10)
    step = Step(
        Classifier(vit).train(),
        objective,
        lambda x: x,
        torch.device("cpu"),
        micro,
        penalty=penalty,
        pretrained=pretrained,
        stream="reference" if beside else "task",
        tokens=tokens,
    )
    optimizer = build_optimizer(vit, [], "adamw", 1e-5, 0.1)
    batches = {"task": (images[:BATCH], torch.arange(BATCH) % 10, torch.arange(BATCH), torch.arange(BATCH))}
    if beside:
        batches["reference"] = (images[BATCH:], torch.zeros(beside), torch.arange(beside), torch.arange(beside))

    def once():
        optimizer.zero_grad(set_to_none=True)
        step(batches)
        optimizer.step()

    once.weights = {p.untyped_storage().data_ptr() for p in vit.parameters()}
    return once


def activations(once) -> float:
    """MB that autograd holds at most during a step."""
    live, highest = 0, 0
    known: dict[int, int] = {}

    def pack(tensor):
        nonlocal live, highest
        storage = tensor.untyped_storage()
        place = storage.data_ptr()
        if place not in known and place not in once.weights:
            known[place] = storage.nbytes()
            live += storage.nbytes()
            highest = max(highest, live)
            held = tensor.detach()
            weakref.finalize(held, forget, place)
            return held
        return tensor

    def forget(place):
        nonlocal live
        live -= known.pop(place, 0)

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        once()
    return highest / 1e6


if __name__ == "__main__":
    flyp = step_of("none", 0)
    dive = {"B' = B": BATCH, "B' = B / 4": BATCH // 4}
    for name, beside in dive.items():
        ratio(f"DiVE step, {name}, looked up / FLYP step", step_of("dive", beside), flyp, 1.35)
        ratio(f"DiVE step, {name}, frozen copy / FLYP step", step_of("dive", beside, cached=False), flyp, 1.64)
    for name in ("replay", "snd", "cosine"):
        ratio(f"{name} step, B' = B / 4, looked up / FLYP step", step_of(name, BATCH // 4), flyp, 1.35)
    ratio("four micro-batches / the whole batch, FLYP", step_of("none", 0, micro=BATCH // 4), flyp, 1.40)
    base = activations(flyp)
    print(f"activations of a FLYP step: {base:.1f} MB")
    for name, beside in dive.items():
        found = activations(step_of("dive", beside))
        print(f"DiVE, {name} / FLYP: {found / base:.2f} (target 1.5, paper 2.75)")
    found = activations(step_of("none", 0, micro=BATCH // 4))
    print(f"FLYP in four micro-batches / whole: {found / base:.2f} (target 0.25)")
    found = activations(step_of("dive", BATCH, micro=BATCH // 4))
    print(f"DiVE, B' = B, in four micro-batches / FLYP: {found / base:.2f}")
