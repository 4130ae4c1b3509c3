"""A tiny real ViT, real digits, and the command line in process."""

from __future__ import annotations

import atexit
import json
import os
import shutil
import tempfile
from pathlib import Path

# Before torch and numpy are loaded. Tiny networks: the threads of a process and of its children only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # two test processes, and what they start: nobody may wait by spinning
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may reach for the network
os.environ["RIFTCLI_CACHE"] = tempfile.mkdtemp(prefix="riftcli-tests-")  # of what is made once for many tests
atexit.register(shutil.rmtree, os.environ["RIFTCLI_CACHE"], ignore_errors=True)

import pytest
import torch
import yaml
from evaluation_runs import CLOTHES, DATA

from riftcli import cli

torch.set_num_threads(1)

# The files that take longest, first: what is begun last should be short, or one process waits for the other.
LONG = ["test_readme.py", "test_distributed.py", "test_ranks.py", "test_vision_language.py", "test_run.py", "test_cluster.py"]
LONG += ["test_studies.py", "test_cli.py", "test_notebook.py", "test_reference.py"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first; within a file the order stays."""
    place = {name: i for i, name in enumerate(LONG)}
    items.sort(key=lambda item: place.get(item.path.name, len(LONG)))


TINY_ARGS = {"patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2}


@pytest.fixture(scope="session")
def tiny_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A timm model folder with a tiny ViT: what tests call pretrained."""
    from riftcli.data.transforms import Preprocessing
    from riftcli.models.backbone import Backbone
    from riftcli.models.weights import save_folder

    torch.manual_seed(7)
    vit = Backbone("vit_tiny_patch16_224", pretrained=False, image_size=16, args=TINY_ARGS).build()
    for parameter in vit.parameters():  # a trained network has no zero biases and no tiny weights
        parameter.data += 0.05 * torch.randn_like(parameter)
    folder = tmp_path_factory.mktemp("tiny") / "vit"
    save_folder(folder, vit, [], Preprocessing.of_model(vit, 16, 1.0))
    return folder


@pytest.fixture(scope="session")
def tiny_recipe_of(tiny_weights: Path):
    """A maker of recipes as plain data: a few seconds on digits."""

    def make() -> dict:
        return {
            "model": {"name": f"local-dir:{tiny_weights}"},
            "data": {
                "format": "digits",
                "train": {"from": "train", "limit": 160},
                "val": {"fraction": 0.2, "from": "train"},
                "test": {"from": "test", "limit": 60},
            },
            "regularizer": {"name": "rift"},
            "optim": {"lr": 1e-3},
            "train": {"epochs": 2, "batch_size": 32, "workers": 0},
            "eval": {"metrics": ["acc", "cka"], "batch_size": 16},
        }

    return make


@pytest.fixture(scope="session")
def one_epoch_run(tmp_path_factory, tiny_recipe_of) -> Path:
    """A finished run of one epoch, `r`, beside its recipe `tiny.yaml`; tests change copies of it."""
    folder, recipe = tmp_path_factory.mktemp("one_epoch"), tiny_recipe_of()
    recipe["train"]["epochs"] = 1
    (folder / "tiny.yaml").write_text(yaml.safe_dump(recipe))
    assert cli.run(["finetune", "--recipe", str(folder / "tiny.yaml"), "--out", str(folder / "r")]) == 0
    return folder / "r"


@pytest.fixture
def tiny_recipe(tiny_recipe_of) -> dict:
    """A recipe that a test changes and writes with `write_recipe`."""
    return tiny_recipe_of()


@pytest.fixture
def write_recipe(tmp_path: Path):
    def write(recipe: dict, name: str = "tiny.yaml") -> Path:
        path = tmp_path / name
        path.write_text(yaml.safe_dump(recipe, sort_keys=False))
        return path

    return write


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test finds what another has kept, or what you have."""
    monkeypatch.setenv("RIFTCLI_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(autouse=True)
def _pages_where_they_are_looked_at(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing the page of a run takes longer than training a tiny network: tests that look at pictures are marked `page`, and
    runs that many tests share have theirs.
    """
    if request.node.get_closest_marker("page") is None:
        monkeypatch.setattr("riftcli.api.present.present_run", lambda run, console: False)


@pytest.fixture
def rift(capfd, monkeypatch, tmp_path):
    """Run a command in process, in a folder of its own; returns (exit code, stdout, stderr)."""
    from riftcli import cli

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: object) -> tuple[int, str, str]:
        capfd.readouterr()
        code = cli.run([str(a) for a in arguments])
        out, err = capfd.readouterr()
        return code, out, err

    return run


@pytest.fixture
def read_json():
    return lambda path: json.loads(Path(path).read_text())


@pytest.fixture
def old_runs() -> Path:
    """Runs that riftcli 0.1.0 wrote before its modules were moved: <method>/{interrupted,finished,final_state}."""
    return Path(__file__).parent / "fixtures" / "runs_0.1"


@pytest.fixture(scope="session")
def trained(tiny_weights, tmp_path_factory) -> Path:
    """Two seeds of full finetuning and of RIFT, and one of LoRA, with a retention set and trajectories."""
    place = tmp_path_factory.mktemp("trained")
    recipe = {
        "model": {"name": f"local-dir:{tiny_weights}"},
        "data": DATA,
        "optim": {"lr": 1e-3},
        "train": {"epochs": 2, "batch_size": 32, "workers": 0},
        "eval": {"metrics": ["acc", "cka"], "batch_size": 16, "trajectory": True, "knn_k": 3},
        "retention": [{"format": "demo_fashion", "train": dict(CLOTHES), "test": dict(CLOTHES)}],
    }
    methods = {"full": {}, "rift": {"regularizer": {"name": "rift"}}, "lora": {"adapter": {"name": "lora"}}}
    for name, changes in methods.items():
        path = place / f"{name}.yaml"
        path.write_text(yaml.safe_dump({**recipe, **changes}, sort_keys=False))
        repeats = 1 if name == "lora" else 2
        seeds = ["--repeats", str(repeats)] if repeats > 1 else []
        assert cli.run(["finetune", "--recipe", str(path), "--out", str(place / name), *seeds]) == 0
    return place


@pytest.fixture
def few(tmp_path, tiny_weights) -> Path:
    """A recipe that names a few digits, for --data."""
    path = tmp_path / "few.yaml"
    path.write_text(yaml.safe_dump({"model": {"name": f"local-dir:{tiny_weights}"}, "data": DATA}))
    return path


@pytest.fixture
def run(trained, tmp_path) -> Path:
    """A copy of one run, to write into."""
    return Path(shutil.copytree(trained / "full" / "s0", tmp_path / "myrun"))
