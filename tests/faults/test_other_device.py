"""Whole commands on a device that is not the CPU, whose tensors must not meet those of the CPU (tests/pretended_device.py)."""

from __future__ import annotations

import pytest
import torch
from pretended_device import There, pretended

from riftcli import recipe as recipes
from riftcli.training.finetune import finetune

pytestmark = pytest.mark.filterwarnings("ignore:for .*:UserWarning", "ignore:Converting a tensor:UserWarning")


@pytest.fixture(scope="module")
def device():
    with pytest.MonkeyPatch.context() as monkeypatch, pretended(monkeypatch) as name:
        yield name


def test_what_a_gpu_would_not_do_is_an_error(device):
    there, here = torch.randn(4, 3, device=device), torch.randn(3, 3)
    assert isinstance(there, There) and isinstance(torch.tensor([1.0], device=device), There)
    assert type((there + 1).cpu()) is torch.Tensor and isinstance(here.to(device), There)
    for work in (
        lambda: there @ here,
        lambda: torch.cat([there, here]),
        lambda: here[torch.tensor([0], device=device)],
    ):
        with pytest.raises(RuntimeError, match="on the same device"):
            work()
    with pytest.raises(TypeError, match="numpy"):
        there.numpy()
    layer = torch.nn.Linear(3, 2).to(device)
    layer(there).square().sum().backward()
    assert isinstance(layer.weight.grad, There)
    assert torch.equal(there[torch.tensor([1, 0])].cpu(), there.cpu()[[1, 0]]), "a GPU takes indices from the CPU"
    assert there.cpu().mean() == there.mean().item() and there[:, 0].zero_().sum() == 0


SOME = {"from": "test", "limit": 20}
RUNS = {
    "full, Q learned": {
        "train": {"micro_batch_size": 8, "ema": 0.9, "sampler": "balanced", "grad_checkpointing": True, "head_init": "zeros"},
        "objective": {"name": "cross_entropy", "class_weights": "balanced"},
        "augment": {"mixup": 0.2, "cutmix": 1.0},
        "regularizer": {"name": "rift", "estimator": "paired", "strength": {"ratio": 0.5}},
    },
    "lora, views looked up": {
        "adapter": {"name": "lora", "dora": True},
        "augment": {"flip": 0.5, "views": 1},
        "regularizer": {"name": "rsc", "strength": {"keep": 0.9}},
        "train": {"head_init": "zeros"},  # fitting it is thousands of small operations, which are slow there
    },
    "two streams": {
        "regularizer": {"name": "ldifs", "layers": 2, "on": "reference"},
        "reference": {"format": "demo_fashion", "split": {"from": "test", "limit": 64}},
        "optim": {"lr": 1e-3, "selective_projection": 1.0},
        "train": {"precision": "bf16"},
    },
}


@pytest.fixture(scope="module")
def runs(device, tmp_path_factory, tiny_recipe_of):
    import yaml

    folder = tmp_path_factory.mktemp("device")
    for name, changes in RUNS.items():
        recipe = tiny_recipe_of()
        recipe |= {key: value for key, value in changes.items() if key != "train"}
        recipe["train"] |= {"epochs": 1, **changes.get("train", {})}
        recipe["eval"] |= {"trajectory": True}
        recipe["data"] |= {"train": {"from": "train", "limit": 80}, "test": {"from": "test", "limit": 30}, "allow_overlap": True}
        recipe["retention"] = [{"format": "demo_fashion", "test": dict(SOME), "train": dict(SOME)}]
        (folder / "r.yaml").write_text(yaml.safe_dump(recipe))
        finetune(recipes.load(str(folder / "r.yaml"), []), folder / name, device=device.type)
    return folder


def test_training_is_that_on_the_cpu(runs, read_json, tmp_path):
    """The same arithmetic, in another order at most."""
    run = runs / "lora, views looked up"
    own = finetune(recipes.load(str(run / "recipe.yaml"), []), tmp_path / "cpu", device="cpu")
    other = read_json(run / "metrics.json")
    for name, entry in own["metrics"].items():
        assert other["metrics"][name]["value"] == pytest.approx(entry["value"], rel=1e-5), name
    for name in ("knn_after", "cka"):
        assert other["retention"]["demo_fashion"][name] == pytest.approx(own["retention"]["demo_fashion"][name], rel=1e-5), name


@pytest.mark.parametrize(
    "command",
    [
        "eval --run RUN --metrics acc,cka,cka_debiased,knn,ece,nll,rsa --set eval.cache=null",
        "knn --run RUN --data demo_full --set eval.cache=null",
        "similarity --run RUN --layers all --map",
        "sharpness --run RUN",
        "attention --run RUN",
        "retrieval --run RUN",
        "align pretrained RUN --map lambda --out MAP",
    ],
)
def test_evaluations(runs, device, rift, tmp_path, command):
    import shutil

    shutil.copytree(runs / "full, Q learned", tmp_path / "RUN")
    code, _, err = rift(*command.split(), "--device", device.type)
    assert code == 0, err
