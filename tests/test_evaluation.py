"""The evaluation commands on real finished runs: knn, sharpness, similarity, attention, predict, compare, correlate, report."""

from __future__ import annotations

import csv
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from jsonschema import Draft202012Validator
from PIL import Image
from safetensors.torch import load_file
from sklearn.neighbors import KNeighborsClassifier

import riftcli
from riftcli import cli
from riftcli import recipe as recipes
from riftcli.data.datasets.digits import Digits
from riftcli.data.transforms import EvalTransform, Preprocessing
from riftcli.functional.sharpness import Ascent, measure
from riftcli.models.classifier import Classifier

SCHEMAS = {
    f"rift.{name}/1": Draft202012Validator(
        json.loads((Path(riftcli.__file__).parent / "assets" / f"{name}.schema.json").read_text())
    )
    for name in ("table", "compare", "predictions")
}

DATA = {
    "format": "digits",
    "train": {"from": "train", "limit": 160},
    "val": {"fraction": 0.2, "from": "train"},
    "test": {"from": "test", "limit": 60},
}


CLOTHES = {"from": "test", "limit": 60}
NOT_THE_RUN = "evaluation can change data.*, input.*, eval.*, model.weights and train.workers, not the run"
NO_FOLDER = "no such data folder (looked in {cwd}); set root, e.g. --set data.root=/path/to/data"


@pytest.fixture(scope="module")
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


def table(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "table.csv").open()))


def features(path: Path, split: str, limit: int) -> tuple[np.ndarray, np.ndarray]:
    """The slow way: image by image through the saved model."""
    from riftcli.data.holdout import limit as cut

    vit = riftcli.load(str(path))
    samples = cut(Digits().load(split), limit, 0)
    prepare = Preprocessing.of_model(vit, 16, 1.0)
    transform = EvalTransform(prepare)
    with torch.no_grad():
        rows = [Classifier(vit)(prepare.normalise(transform(samples.read(i))[None])).features[0] for i in range(len(samples))]
    return torch.stack(rows).numpy(), samples.targets


def read(text: str) -> dict:
    """The JSON of a command, which must fit its schema."""
    report = json.loads(text)
    SCHEMAS[report["schema"]].validate(report)
    return report


# ---- knn


def test_knn_answers_as_scikit_learn_does(rift, run):
    code, out, err = rift("knn", "--run", run, "--k", "1,5", "--json")
    assert code == 0, err
    report = read(out)
    assert (report["schema"], report["command"]) == ("rift.table/1", "knn")
    bank, labels = features(run, "train", 160)
    queries, targets = features(run, "test", 60)
    for row in [row for row in report["rows"] if row["model"] == "myrun"]:
        reference = KNeighborsClassifier(row["k"], metric="cosine", weights=lambda d: np.exp((1 - d) / 0.07)).fit(bank, labels)
        assert row["acc"] == pytest.approx(reference.score(queries, targets))
        assert (row["n"], row["bank_n"], row["data"]) == (60, 160, "digits")
    assert [row["model"] for row in report["rows"]] == ["pretrained vit"] * 2 + ["myrun"] * 2
    assert [row["acc"] for row in report["rows"]] == [float(row["acc"]) for row in table(run / "knn" / "digits")]


def test_knn_of_several_models_on_several_sets_gives_one_table(rift, trained, tmp_path, few):
    folders = [trained / "full", trained / "rift"]
    runs = [word for folder in folders for word in ("--run", shutil.copytree(folder, tmp_path / folder.name))]
    code, _, err = rift("knn", *runs, "--data", few, "--data", make_folder(tmp_path), "--out", "all", "--k", "3")
    assert code == 0, err
    rows = table(tmp_path / "all")
    assert {row["group"] for row in rows} == {"pretrained vit", "full", "rift"}
    assert {row["data"] for row in rows} == {"digits", "shapes"}
    assert len(rows) == (1 + 2 + 2) * 2
    header = next(line for line in err.splitlines() if line.startswith("model"))
    assert header.split() == ["model", "digits", "shapes", "mean"]
    line = next(line for line in err.splitlines() if line.startswith("full "))
    seeds = [float(row["acc"]) for row in rows if (row["group"], row["data"]) == ("full", "digits")]
    assert f"{np.mean(seeds):.4f} +- {np.std(seeds, ddof=1):.4f}" in line
    assert {row["model"] for row in table(tmp_path / "full" / "s1" / "knn" / "shapes")} == {"pretrained vit", "full/s1"}


def make_folder(place: Path) -> str:
    """Two classes of plain colours with train/ and test/: nobody can miss them."""
    for split, count in (("train", 6), ("test", 4)):
        for name, colour in (("red", (220, 30, 30)), ("blue", (20, 30, 220))):
            folder = place / "shapes" / split / name
            folder.mkdir(parents=True, exist_ok=True)
            for i in range(count):
                Image.new("RGB", (20, 20), tuple(c + i for c in colour)).save(folder / f"{split}{i}.png")
    return f"imagefolder:{place / 'shapes'}"


def test_few_shot_and_probe(rift, run, tmp_path):
    code, out, err = rift(
        "knn",
        "--run",
        run,
        "--data",
        make_folder(tmp_path),
        "--few-shot",
        2,
        "--draws",
        3,
        "--probe",
        "--no-pretrained",
        "--json",
    )
    assert code == 0, err
    rows = read(out)["rows"]
    assert [(row["classifier"], row["k"], row["shots"], row["bank_n"]) for row in rows] == [
        ("knn", 20, 2, 4),
        ("probe", None, 2, 4),
    ]
    assert [row["acc"] for row in rows] == [1.0, 1.0]
    assert [row["std"] for row in rows] == [0.0, 0.0]


def test_knn_of_a_timm_model_that_we_did_not_train(rift, tiny_weights, tmp_path):
    code, out, err = rift("knn", "--model", f"local-dir:{tiny_weights}", "--data", make_folder(tmp_path), "--json")
    assert code == 0, err
    report = read(out)
    assert [row["acc"] for row in report["rows"]] == [1.0]
    assert report["models"][0]["method"]["adapter"] == "none"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--k", "five"], "--k five: expected numbers, e.g. 20 or 10,20,100"),
        (["--k", "0"], "--k 0: numbers of neighbours are 1 or more"),
        (["--temperature", "0"], "--temperature 0: must be above 0"),
        (
            ["--data", "imagefolder:/nowhere"],
            "/nowhere: no such data folder (looked in {cwd}); set root, e.g. --set data.root=/path/to/data",
        ),
        (
            ["--set", "optim.lr=1"],
            "--set optim.lr=1: evaluation can change data.*, input.*, eval.*, model.weights and train.workers, not the run",
        ),
    ],
)
def test_knn_refuses(rift, run, tmp_path, options, message):
    code, _, err = rift("knn", "--run", run, *options)
    assert code in (2, 3)
    assert err.splitlines()[-1] == f"error: {message.format(cwd=tmp_path)}"


def test_a_model_without_data_says_what_to_give(rift, tiny_weights):
    code, _, err = rift("knn", "--model", f"local-dir:{tiny_weights}")
    assert (code, err) == (
        2,
        "error: a model without its run does not say what to look at: give --data RECIPE or --data imagefolder:PATH\n",
    )


def test_cached_features_are_found_again_and_only_for_the_same_content(rift, run, tmp_path):
    def acc(*options) -> float:
        code, out, err = rift("knn", "--run", run, "--no-pretrained", "--json", "--set", "eval.cache=cache", *options)
        assert code == 0, err
        return read(out)["rows"][0]["acc"]

    first = acc()
    files = sorted((tmp_path / "cache").glob("*.safetensors"))
    assert len(files) == 2  # bank and queries
    stamps = [file.stat().st_mtime_ns for file in files]
    assert acc() == first
    assert [file.stat().st_mtime_ns for file in files] == stamps
    acc("--set", "data.test.limit=50")
    assert len(list((tmp_path / "cache").glob("*.safetensors"))) == 3  # other samples, another table
    acc("--set", "eval.batch_size=8")
    assert len(list((tmp_path / "cache").glob("*.safetensors"))) == 5
    weights = run / "model" / "model.safetensors"
    tensors = load_file(weights)
    tensors["blocks.0.mlp.fc1.weight"] += 0.01
    from safetensors.torch import save_file

    save_file(tensors, weights, metadata={"format": "pt"})
    changed = acc()
    assert len(list((tmp_path / "cache").glob("*.safetensors"))) == 7  # other weights
    for file in (tmp_path / "cache").glob("*.safetensors"):  # a flipped byte is noticed: the table is computed again
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
    assert acc() == changed
    assert all(file.with_suffix(".sha256").read_text() for file in (tmp_path / "cache").glob("*.safetensors"))


# ---- similarity


def test_similarity_of_a_run_to_its_pretrained_model(rift, run, read_json):
    code, out, err = rift("similarity", "--run", run, "--metrics", "all", "--layers", "all", "--map", "--bootstrap", 8, "--json")
    assert code == 0, err
    report = read(out)
    rows = {row["metric"]: row for row in report["rows"]}
    kept = read_json(run / "metrics.json")["metrics"]["cka"]["value"]
    assert rows["cka"]["value"] == pytest.approx(kept, abs=1e-6)
    assert rows["cka"]["low"] < kept < rows["cka"]["high"]
    assert {row["reference"] for row in report["rows"]} == {"pretrained vit"}
    corner = next(c for c in report["layers"] if (c["reference_layer"], c["layer"]) == ("head", "head"))
    assert corner["cka"] == pytest.approx(kept, abs=1e-6)
    assert len(report["layers"]) == 3 * 3
    assert len(report["map"]) == 2 * 60
    folder = run / "similarity" / "digits-test"
    assert {path.name for path in folder.iterdir()} == {"metrics.json", "table.csv", "layers.csv", "layers.png", "map.csv"}


def test_a_model_is_as_similar_to_itself_as_can_be(rift, trained, tmp_path):
    one = shutil.copytree(trained / "lora", tmp_path / "lora")
    code, out, err = rift("similarity", "--run", one, "--against", one, "--metrics", "all", "--bootstrap", 0, "--json")
    assert code == 0, err
    for row in read(out)["rows"]:
        zero = row["metric"] in ("procrustes", "centre_distance")
        assert row["value"] == pytest.approx(0 if zero else 1, abs=1e-5), row["metric"]
        assert row["low"] is None


def test_two_timm_models(rift, tiny_weights, few):
    name = f"local-dir:{tiny_weights}"
    code, out, err = rift(
        "similarity", "--model", name, "--against", name, "--data", few, "--metrics", "cka", "--bootstrap", 0, "--json"
    )
    assert code == 0, err
    assert read(out)["rows"][0]["value"] == pytest.approx(1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--metrics", "ckaa"], "--metrics ckaa: no such similarity (did you mean 'cka'?); one of: cka, cka_debiased, "),
        (["--split", "vall"], "digits: no split 'vall'; it has: train, test"),
    ],
)
def test_similarity_refuses(rift, run, options, message):
    code, _, err = rift("similarity", "--run", run, *options)
    assert code in (2, 3)
    assert err.startswith(f"error: {message}"), err


# ---- sharpness


def quadratic(curvature: list[float], start: list[float]):
    """A loss with known geometry: sum of curvature * w^2 / 2 at w = start."""
    model = torch.nn.Module()
    model.w = torch.nn.Parameter(torch.tensor(start))
    scale = torch.tensor(curvature)

    def evaluate(with_gradient: bool) -> float:
        model.zero_grad(set_to_none=True)
        loss = (scale * model.w.square()).sum() / 2
        if with_gradient:
            loss.backward()
        return float(loss.detach())

    return model, evaluate


def test_sharpness_of_a_quadratic_is_known():
    model, evaluate = quadratic([1.0, 1.0], [3.0, 4.0])
    before = model.w.detach().clone()
    for method in ("sam", "pga"):
        found = measure(model, evaluate, Ascent(method, rho=0.5))
        assert found.loss == pytest.approx(12.5)
        assert found.value == pytest.approx((5.5**2 - 25) / 2, rel=1e-5)  # straight up: |w| grows by rho
        assert found.gradient_norm == pytest.approx(5)
    assert torch.equal(model.w, before)
    assert model.w.grad is None


def test_projected_ascent_finds_more_than_one_step_where_the_gradient_turns():
    model, evaluate = quadratic([100.0, 1.0], [0.0001, 1.0])  # the steep direction hardly shows in the gradient
    one = measure(model, evaluate, Ascent("sam", rho=0.5)).value
    several = measure(model, evaluate, Ascent("pga", rho=0.5, steps=40)).value
    best = max(
        (100 * (0.0001 + 0.5 * math.sin(a)) ** 2 + (1 + 0.5 * math.cos(a)) ** 2) / 2 - 0.5 - 100 * 1e-8 / 2
        for a in np.linspace(0, 2 * math.pi, 10_000)
    )
    assert one < several <= best * (1 + 1e-5)
    assert several > 0.95 * best


def test_random_points_lie_on_the_sphere_and_are_seeded():
    model, evaluate = quadratic([1.0, 1.0, 1.0], [1.0, 0.0, 0.0])
    found = measure(model, evaluate, Ascent("random", rho=0.1, draws=200, seed=1))
    assert found.visited == 200
    assert 0.9 * (1.1**2 - 1) / 2 < found.value <= (1.1**2 - 1) / 2 + 1e-6
    assert found == measure(model, evaluate, Ascent("random", rho=0.1, draws=200, seed=1))


def test_adaptive_sharpness_does_not_change_when_weights_are_rescaled():
    def product(a: float, b: float) -> float:
        model = torch.nn.Module()
        model.a, model.b = torch.nn.Parameter(torch.tensor([a])), torch.nn.Parameter(torch.tensor([b]))

        def evaluate(with_gradient: bool) -> float:
            model.zero_grad(set_to_none=True)
            loss = (model.a * model.b - 1).square().sum()
            if with_gradient:
                loss.backward()
            return float(loss.detach())

        return measure(model, evaluate, Ascent("sam", rho=0.05, adaptive=True)).value

    assert product(2.0, 3.0) == pytest.approx(product(0.2, 30.0), rel=1e-4)


def test_weights_come_back_even_when_the_loss_fails():
    model, evaluate = quadratic([1.0], [2.0])
    calls = []

    def failing(with_gradient: bool) -> float:
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("out of memory")
        return evaluate(with_gradient)

    model.w.requires_grad_(False)
    with pytest.raises(RuntimeError):
        measure(model, failing, Ascent())
    assert model.w.tolist() == [2.0]
    assert not model.w.requires_grad


def test_sharpness_of_a_run_against_a_loop_by_hand(rift, run):
    code, out, err = rift("sharpness", "--run", run, "--json")
    assert code == 0, err
    (row,) = read(out)["rows"]
    vit = riftcli.load(str(run))
    from riftcli.data.holdout import limit

    samples = limit(Digits().load("test"), 60, 0)
    prepare = Preprocessing.of_model(vit, 16, 1.0)
    images = prepare.normalise(torch.stack([EvalTransform(prepare)(samples.read(i)) for i in range(60)]))
    targets = torch.from_numpy(samples.targets)

    def loss() -> torch.Tensor:
        return torch.nn.functional.cross_entropy(vit(images), targets)

    base = loss()
    gradients = torch.autograd.grad(base, list(vit.parameters()))
    norm = torch.sqrt(sum(g.double().square().sum() for g in gradients))
    with torch.no_grad():
        for p, g in zip(vit.parameters(), gradients, strict=True):
            p += (0.01 * g / norm).float()
    assert row["loss"] == pytest.approx(float(base), abs=1e-6)
    assert row["gradient_norm"] == pytest.approx(float(norm), rel=1e-4)
    assert row["sharpness"] == pytest.approx(float(loss() - base), rel=1e-3)
    assert row["first_order"] == pytest.approx(0.01 * float(norm), rel=1e-4)


def test_sharpness_of_several_runs_prints_the_three_blocks(rift, trained, tmp_path):
    runs = [shutil.copytree(trained / name, tmp_path / name) for name in ("full", "lora")]
    code, _, err = rift("sharpness", "--run", runs[0], "--run", runs[1], "--out", "all")
    assert code == 0, err
    titles = [line.strip() for line in err.splitlines() if line.strip().endswith("(rho 0.01)")]
    assert titles == ["highest loss (rho 0.01)", "loss (rho 0.01)", "sharpness (rho 0.01)"]
    assert [row["group"] for row in table(tmp_path / "all")] == ["full", "full", "lora"]


def test_sharpness_needs_a_radius(rift, run):
    assert rift("sharpness", "--run", run, "--rho", 0)[::2] == (2, "error: --rho 0: must be above 0\n")


# ---- several ranks


def test_two_ranks_answer_as_one(run, tmp_path, few):
    """The real torchrun: bank and queries, layers, gradients and losses are shared out and put together again."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    alone = tmp_path / "alone.yaml"  # one split on both sides: leave-one-out
    alone.write_text(
        yaml.safe_dump(
            {
                "model": {"name": "vit_tiny_patch16_224"},
                "data": {"format": "demo_fashion", "train": dict(CLOTHES), "test": dict(CLOTHES)},
            }
        )
    )
    wanted = {
        "knn": ["--k", "3,7", "--data", make_folder(tmp_path), "--data", str(few), "--data", str(alone)],
        "similarity": ["--layers", "all", "--metrics", "cka,rsa", "--bootstrap", "4"],
        "sharpness": [],
        "attention": ["--count", "3"],
    }
    for command, options in [*wanted.items(), ("knn", ["--probe", "--no-pretrained", "--few-shot", "3", "--data", str(few)])]:
        found = []
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "riftcli", "--"]
        for start in (["-m", "riftcli"], torchrun):  # without the `--`, torchrun takes --run for an option of its own
            line = [sys.executable, *start, command, "--run", str(run), "--json", *options]
            done = subprocess.run(line, capture_output=True, text=True, timeout=300, env=environment, cwd=tmp_path)
            assert done.returncode == 0, done.stderr
            found.append(read(done.stdout))
        one, two = found
        assert (one["env"]["world_size"], two["env"]["world_size"]) == (1, 2)
        for name in ("rows", "layers"):
            for left, right in zip(one.get(name, []), two.get(name, []), strict=True):
                close = {k: pytest.approx(v, rel=1e-4, abs=1e-6) if isinstance(v, float) else v for k, v in right.items()}
                assert left == close


# ---- other networks than the plain ViT


@pytest.fixture(scope="module")
def networks(tmp_path_factory) -> Path:
    """Folders of untrained weights: a ViT without class token, one whose head reads the mean, and a convolutional network."""
    from riftcli.models.backbone import Backbone
    from riftcli.models.weights import save_folder

    place = tmp_path_factory.mktemp("networks")
    small = {"patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2}
    wanted = {
        "mean": ("vit_tiny_patch16_224", {**small, "global_pool": "avg"}),
        "no_token": ("vit_tiny_patch16_224", {**small, "global_pool": "avg", "class_token": False}),
        "registers": ("vit_tiny_patch16_224", {**small, "reg_tokens": 2}),
        "convolutional": ("test_resnet", {}),
    }
    for name, (architecture, args) in wanted.items():
        torch.manual_seed(3)
        vit = Backbone(architecture, pretrained=False, image_size=16, args=args).build()
        save_folder(place / name, vit, [], Preprocessing.of_model(vit, 16, 1.0))
    return place


def trained_on(rift, write_recipe, model: Path, **changes) -> None:
    """One epoch into the folder `r`."""
    recipe = {
        "model": {"name": f"local-dir:{model}"},
        "data": DATA,
        "optim": {"lr": 1e-3},
        "train": {"epochs": 1, "batch_size": 32, "workers": 0},
        "eval": {"metrics": ["acc", "cka"], "batch_size": 16},
    }
    code, _, err = rift("finetune", "--recipe", write_recipe(recipe | changes), "--out", "r")
    assert code == 0, err


@pytest.mark.parametrize("adapter", ["vpt", "adaptformer", "ssf", "oft", "partial"])
def test_every_command_on_a_network_that_something_was_put_into(rift, tiny_weights, tmp_path, write_recipe, adapter):
    trained_on(rift, write_recipe, tiny_weights, adapter={"name": adapter, **({"blocks": 1} if adapter == "partial" else {})})
    code, _, err = rift("report", "r", "--evaluate", "--out", "page.html")
    assert code == 0, err
    assert "warning" not in err
    page = (tmp_path / "page.html").read_text()
    assert all(title in page for title in ("Layers of r", "Attention of r", "PCA map of r", "Confusion matrix of r", "sharpness"))
    assert "Not measured yet" not in page
    code, out, err = rift("knn", "--run", "r", "--json")
    assert code == 0, err
    layers = json.loads((tmp_path / "r/similarity/digits-test/metrics.json").read_text())["layers"]
    names = ["block1", "block2", "head"]
    assert [(cell["reference_layer"], cell["layer"]) for cell in layers] == [(x, y) for x in names for y in names]
    rows = json.loads((tmp_path / "r/attention/digits-test/metrics.json").read_text())["rows"]
    assert all(0 <= row["js_distance"] < 1 for row in rows)


@pytest.mark.parametrize("network", ["mean", "no_token", "registers"])
def test_attention_follows_what_the_head_reads(networks, network):
    from riftcli.models.attention_maps import attention_maps
    from riftcli.models.backbone import Backbone

    vit = Backbone(f"local-dir:{networks / network}").build().eval()
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    tokens = vit.norm_pre(vit._pos_embed(vit.patch_embed(images)))  # (2, prefix + 16, 32)
    prefix = {"mean": 1, "no_token": 0, "registers": 3}[network]
    assert tokens.shape[1] == prefix + 16
    attn = vit.blocks[1].attn
    with torch.no_grad():
        qkv = attn.qkv(vit.blocks[1].norm1(vit.blocks[0](tokens)))
        q, key, _ = qkv.reshape(2, prefix + 16, 3, 2, 16).permute(2, 0, 3, 1, 4)
        weights = (q @ key.transpose(-2, -1) * 16**-0.5).softmax(-1)  # (2, heads, T, T)
    seen = weights[:, :, 0] if network == "registers" else weights[:, :, prefix:].mean(2)
    seen = seen[..., prefix:] / seen[..., prefix:].sum(-1, keepdim=True)
    assert torch.allclose(attention_maps(vit, images).flatten(2), seen, atol=1e-5)


@pytest.mark.parametrize("network", ["mean", "no_token"])
def test_every_command_without_a_class_token(rift, networks, tmp_path, write_recipe, network):
    trained_on(rift, write_recipe, networks / network)
    code, _, err = rift("report", "r", "--evaluate", "--out", "page.html")
    assert code == 0, err
    assert "warning" not in err
    assert "Not measured yet" not in (tmp_path / "page.html").read_text()
    for command in ("knn", "sharpness", "similarity"):
        code, out, err = rift(command, "--run", "r", "--json")
        assert code == 0, err
        read(out)


def test_every_command_on_a_convolutional_network(rift, networks, tmp_path, write_recipe):
    trained_on(rift, write_recipe, networks / "convolutional")
    for command in ("knn", "sharpness", "similarity"):
        code, out, err = rift(command, "--run", "r", "--json")
        assert code == 0, err
        assert all(math.isfinite(row.get("acc", row.get("sharpness", row.get("value", 0)))) for row in read(out)["rows"])
    code, _, err = rift("attention", "--run", "r")
    assert (code, err) == (2, "error: attention maps need a vision transformer with timm's attention blocks\n")
    code, _, err = rift("report", "r", "--evaluate", "--out", "page.html")
    assert code == 0, err
    assert "warning" not in err
    page = (tmp_path / "page.html").read_text()
    assert "Attention of r" not in page
    assert "Not measured yet" not in page, "nothing that cannot be measured is asked for"
    assert "Layers of r" in page


def test_layers_of_a_network_without_tokens_are_the_means_of_its_stages(networks):
    from riftcli.evaluation.layer_features import encode_layers
    from riftcli.models.backbone import Backbone

    net = Backbone(f"local-dir:{networks / 'convolutional'}").build().eval()
    prepare = Preprocessing.of_model(net, 16, 1.0)
    images = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    batches = iter([(images[2:], torch.zeros(2), torch.tensor([2, 3])), (images[:2], torch.zeros(2), torch.tensor([0, 1]))])
    layers = encode_layers(Classifier(net), batches, prepare, torch.device("cpu"))
    with torch.no_grad():
        x = net.maxpool(net.act1(net.bn1(net.conv1(prepare.normalise(images)))))
        by_hand = []
        for stage in (net.layer1, net.layer2, net.layer3, net.layer4):
            x = stage(x)
            by_hand.append(x.mean((2, 3)))
        final = Classifier(net)(prepare.normalise(images)).features
    assert len(layers) == 6, "stem, four stages, head"
    assert all(torch.allclose(ours, wanted, atol=1e-5) for ours, wanted in zip(layers[1:5], by_hand, strict=True))
    assert torch.allclose(layers[5], final, atol=1e-5)


# ---- attention, predict


def test_attention_before_and_after(rift, run):
    code, out, err = rift("attention", "--run", run, "--count", 3, "--json")
    assert code == 0, err
    rows = read(out)["rows"]
    assert len(rows) == 3
    assert all(0 < row["js_distance"] < 1 for row in rows)
    folder = run / "attention" / "digits-test"
    pictures = {"attention.png", "attention_heads.png", "attention_heads.csv"}
    assert {p.name for p in folder.iterdir()} == {"metrics.json", "table.csv", "maps.csv", *pictures}
    for name, count in (("maps", 1), ("attention_heads", 2)):
        cells = list(csv.DictReader((folder / f"{name}.csv").open()))
        assert len(cells) == 2 * 3 * count * 4, "two models, three images, the mean or two heads, four rows of patches"
        shares: dict[tuple, float] = {}
        for cell in cells:
            key = (cell["model"], cell["id"], cell.get("head"))
            shares[key] = shares.get(key, 0) + sum(float(cell[f"c{i}"]) for i in range(4))
        assert all(share == pytest.approx(1, abs=1e-5) for share in shares.values())


def test_attention_maps_are_the_softmax_of_the_class_token(tiny_weights):
    from riftcli.models.attention_maps import attention_maps
    from riftcli.models.backbone import Backbone

    vit = Backbone(f"local-dir:{tiny_weights}").build().eval()
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    fused = vit.blocks[-1].attn.fused_attn
    maps = attention_maps(vit, images)
    assert maps.shape == (2, 2, 4, 4)
    assert torch.allclose(maps.sum((2, 3)), torch.ones(2, 2))
    assert vit.blocks[-1].attn.fused_attn == fused
    with torch.no_grad():
        tokens = vit._pos_embed(vit.patch_embed(images))
        tokens = vit.blocks[0](vit.norm_pre(tokens))
        attn = vit.blocks[1].attn
        qkv = attn.qkv(vit.blocks[1].norm1(tokens)).reshape(2, 17, 3, 2, 16).permute(2, 0, 3, 1, 4)
        weights = (qkv[0][:, :, :1] @ qkv[1].transpose(-2, -1) * 16**-0.5).softmax(-1)[:, :, 0, 1:]
    assert torch.allclose(maps.flatten(2), weights / weights.sum(-1, keepdim=True), atol=1e-5)


def test_predict_gives_the_classes_of_the_evaluation(rift, run, tmp_path):
    from riftcli.data.holdout import limit

    samples = limit(Digits().load("test"), 60, 0)
    place = tmp_path / "pictures"
    place.mkdir()
    for i in range(5):
        samples.read(i).save(place / f"{i}.png")
    code, out, err = rift("predict", run, place, place / "3.png")
    assert code == 0, err
    rows = list(csv.DictReader(out.splitlines()))
    assert [Path(row["path"]).name for row in rows] == [f"{i}.png" for i in range(5)]
    known = {row["id"]: row for row in csv.DictReader((run / "eval" / "digits-test" / "predictions.csv").open())}
    for i, row in enumerate(rows):
        want = known[samples.ids[i]]
        assert row["class"] == want["predicted"]
        assert [float(row[f"p_{c}"]) for c in range(10)] == pytest.approx([float(want[f"p_{c}"]) for c in range(10)], abs=2e-6)
    code, _, err = rift("predict", run, place, "--out", "found.csv")
    assert (code, err) == (0, "predictions: found.csv (5 images)\n")
    assert (tmp_path / "found.csv").read_text().splitlines()[0].startswith("path,class,p_0,")


def test_predict_refuses_what_is_no_image(rift, run, tmp_path):
    (tmp_path / "empty").mkdir()
    extensions = ".bmp, .jpeg, .jpg, .pgm, .png, .ppm, .tif, .tiff, .webp"
    code, _, err = rift("predict", run, "empty")
    assert (code, err) == (3, f"error: empty: no image in this folder (looked for {extensions})\n")
    code, _, err = rift("predict", run, "nothing.png")
    assert (code, err) == (3, "error: nothing.png: no such file or folder\n")
    code, _, err = rift("predict", run, "empty", "--out", "no/such/place.csv")
    assert (code, err) == (2, "error: --out no/such/place.csv: not a file that can be written\n")


# ---- calibration


def test_eval_writes_a_reliability_diagram_and_fits_a_temperature(rift, run, read_json):
    code, _, err = rift("eval", "--run", run, "--metrics", "ece,ece_adaptive,brier,nll,knn", "--temperature-scaling")
    assert code == 0, err
    folder = run / "eval" / "digits-test"
    report = read_json(folder / "metrics.json")
    scaled = report["temperature"]
    assert (scaled["fitted_on"], scaled["n"]) == ("val", 32)
    assert scaled["value"] > 0
    rows = list(csv.DictReader((folder / "reliability.csv").open()))
    assert sum(int(row["count"]) for row in rows) == 60
    error = sum(int(r["count"]) / 60 * abs(float(r["accuracy"]) - float(r["confidence"])) for r in rows if int(r["count"]))
    assert error == pytest.approx(report["metrics"]["ece"]["value"], abs=1e-6)
    assert (folder / "reliability.png").stat().st_size > 5000
    assert (folder / "reliability_scaled.csv").is_file()


def test_a_temperature_needs_a_validation_split(rift, run):
    stored = run / "recipe.resolved.yaml"
    recipe = yaml.safe_load(stored.read_text())
    recipe["data"]["val"], recipe["eval"]["trajectory"] = None, False
    stored.write_text(yaml.safe_dump(recipe))
    code, _, err = rift("eval", "--run", run, "--metrics", "acc", "--temperature-scaling")
    assert (code, err) == (2, "error: --temperature-scaling: the recipe has no validation split to fit on (data.val)\n")


def test_a_folder_of_seeds_where_one_run_is_meant(rift, trained):
    code, _, err = rift("eval", "--run", trained / "full")
    where = trained / "full"
    assert (code, err) == (2, f"error: --run {where}: a folder of 2 runs, and this looks at one; name it, e.g. {where / 's0'}\n")


# ---- who is who: labels, groups, places


def test_the_same_run_twice_is_refused(rift, trained):
    code, _, err = rift("compare", trained / "full", trained / "full" / "s0")
    assert (code, err) == (2, f"error: {trained / 'full' / 's0'}: given twice; its numbers would count double\n")


def test_groups_of_one_name_in_two_places_are_not_seeds_of_each_other(trained, tmp_path):
    from riftcli.evaluation.candidates import open_runs

    for name in ("full", "rift"):
        shutil.copytree(trained / name, tmp_path / name / "x")
    found = open_runs([tmp_path / "full" / "x", tmp_path / "rift" / "x"], [])
    assert [candidate.group for candidate in found] == ["full/x", "full/x", "rift/x", "rift/x"]
    assert [candidate.label for candidate in found] == ["full/x/s0", "full/x/s1", "rift/x/s0", "rift/x/s1"]


def test_a_folder_that_is_not_there_names_the_nearest(rift, run):
    code, _, err = rift("knn", "--run", run.parent / "myrum")
    assert (code, err) == (2, f"error: {run.parent / 'myrum'}: no such folder (did you mean 'myrun'?)\n")
    code, _, err = rift("compare", "nowhere/at/all")
    assert (code, err) == (2, "error: nowhere/at/all: no such folder\n")


def test_a_folder_that_holds_runs_is_no_folder_of_seeds(rift, trained):
    code, _, err = rift("compare", trained)
    where = "neither a run folder nor a model folder (no recipe.resolved.yaml, no config.json)"
    assert (code, err) == (2, f"error: --run {trained}: {where}\n")


def test_two_models_and_two_sets_of_one_name_are_kept_apart(rift, trained, tmp_path):
    for i, name in enumerate(("full", "rift")):
        shutil.copytree(trained / name / "s0" / "model", tmp_path / f"k{i}" / "model")
        make_folder(tmp_path / f"p{i}")
    options = [word for i in range(2) for word in ("--model", f"local-dir:k{i}/model", "--data", f"imagefolder:p{i}/shapes")]
    code, out, err = rift("knn", *options, "--json")
    assert code == 0, err
    rows = read(out)["rows"]
    assert [(row["model"], row["data"]) for row in rows] == [
        ("model", "shapes-0"),
        ("model", "shapes-1"),
        ("model (2)", "shapes-0"),
        ("model (2)", "shapes-1"),
    ]


def test_other_questions_do_not_overwrite_the_answer(rift, run, trained, tmp_path):
    other = shutil.copytree(trained / "rift" / "s1", tmp_path / "other")
    asked = [
        ("similarity", "--bootstrap", 0, "--metrics", "rsa"),
        ("similarity", "--bootstrap", 0, "--metrics", "rsa", "--against", other),
        ("sharpness",),
        ("sharpness", "--rho", 0.1, "--adaptive"),
        ("knn", "--k", 3),
        ("knn", "--k", 3, "--vote", "majority"),
    ]
    for command, *options in asked:
        code, _, err = rift(command, "--run", run, *options)
        assert code == 0, err
    folders = sorted(
        str(path.parent.relative_to(run)) for path in run.glob("*/*/metrics.json") if path.parent.parent.name != "eval"
    )
    assert folders == [
        "knn/digits",
        "knn/digits-vote-majority",
        "sharpness/digits-test",
        "sharpness/digits-test-rho-0.1-adaptive-1",
        "similarity/digits-test",
        "similarity/digits-test-against-other",
    ]
    moved = run.rename(tmp_path / "renamed")  # what was measured goes with the run
    code, out, err = rift("compare", moved, "--json")
    cells = {row["column"]: row["mean"] for row in read(out)["rows"]}
    assert cells["rsa"] == float(table(moved / "similarity" / "digits-test")[0]["value"])
    assert cells["sharpness"] == float(table(moved / "sharpness" / "digits-test")[0]["sharpness"])
    assert cells["sharpness rho=0.1 adaptive=1"] != cells["sharpness"]
    assert {"knn k=3 digits", "knn k=3 digits vote=majority"} <= set(cells)


def test_methods_that_differ_in_more_than_the_seed_have_different_names():
    from riftcli.recipe.naming import method_names

    base = "model: {name: vit_tiny_patch16_224}\ndata: {format: digits}\n"
    changes = [[], ["train.seed=1"], ["optim.lr=1e-5"], ["adapter.name=lora"], ["adapter.name=lora", "adapter.rank=8"]]
    found = method_names([recipes.parse(base, "r.yaml", change) for change in changes])
    assert found == [
        "full (optim.lr 0.0001)",
        "full (optim.lr 0.0001)",
        "full (optim.lr 1e-05)",
        "lora (adapter.rank 4)",
        "lora (adapter.rank 8)",
    ]


def test_a_folder_of_weights_alone_is_not_evaluated_on_data_that_nobody_named(rift, run, tmp_path):
    alone = shutil.copytree(run / "model", tmp_path / "alone")
    message = "a model folder without its run; say what to evaluate on, e.g. --set data.format=image_folder"
    for command in ("eval", "sharpness"):
        code, _, err = rift(command, "--run", alone)
        assert (code, err) == (2, f"error: --run {alone}: {message}\n")


def test_a_multi_label_model_on_its_own_still_knows_that_it_is_one(rift, tiny_weights, tmp_path, write_recipe):
    (tmp_path / "pictures").mkdir()
    lines = ["file,a,b,c"]
    for i in range(24):
        Image.new("RGB", (16, 16), (10 * i, 255 - 10 * i, 99)).save(tmp_path / "pictures" / f"{i}.png")
        lines.append(f"{i}.png,{i % 2},{int(i > 11)},{int(i % 3 == 0)}")
    (tmp_path / "labels.csv").write_text("\n".join(lines) + "\n")
    recipe = {
        "model": {"name": f"local-dir:{tiny_weights}"},
        "data": {
            "format": "csv_table",
            "root": str(tmp_path),
            "labels": {"train": "labels.csv", "test": "labels.csv"},
            "images": ["pictures"],
            "image_column": "file",
            "label_columns": ["a", "b", "c"],
            "task": "multilabel",
            "val": {"from": "train", "fraction": 0.25},
            "allow_overlap": True,
        },
        "objective": {"name": "bce"},
        "train": {"epochs": 1, "batch_size": 9, "workers": 0},
        "eval": {"metrics": ["map", "cka"], "best": "map"},
    }
    code, _, err = rift("finetune", "--recipe", write_recipe(recipe), "--out", "multi")
    assert code == 0, err
    for command in (
        ["similarity", "--run", "multi", "--map", "--bootstrap", "0"],
        ["sharpness", "--run", "multi"],
        ["attention", "--run", "multi", "--image", "pictures/3.png"],
        ["compare", "multi"],
        ["report", "multi", "--evaluate"],
    ):
        code, _, err = rift(*command)
        assert code == 0, err
    code, _, err = rift("knn", "--run", "multi")
    assert code == 3
    assert "kNN needs one label per image, and this data is multilabel" in err
    shutil.copytree(tmp_path / "multi" / "model", tmp_path / "alone")
    answers = []
    for model in ("multi", "alone"):
        code, out, err = rift("predict", model, "pictures", "--json")
        assert code == 0, err
        answers.append(read(out)["rows"])
    assert answers[0] == answers[1]
    row = answers[0][0]
    assert row["class"] == "|".join(name for name, p in row["probabilities"].items() if p > 0.5)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["sharpness", "--rho", "nan"], "--rho nan: must be above 0"),
        (["knn", "--temperature", "inf"], "--temperature inf: must be above 0"),
        (["attention", "--block", "99"], "--block 99: the model has 2 blocks, from 0, or negative from the end"),
        (["knn", "--out", "taken"], "--out taken: exists and is not a folder"),
        (
            ["similarity", "--against", "{run}", "--set", "model.image_size=32"],
            "--set model.image_size=32: --against {run} is a folder of weights, which has its own model",
        ),
    ],
)
def test_wrong_options_are_told_before_the_work(rift, run, tmp_path, line, message):
    (tmp_path / "taken").write_text("")
    command, *options = [word.format(run=run) for word in line]
    code, _, err = rift(command, "--run", run, *options)
    assert (code, err.splitlines()[-1]) == (2, f"error: {message.format(run=run)}")


# ---- trajectories, correlate, centrality


def test_trajectory_follows_similarity_knn_and_calibration(trained):
    rows = [json.loads(line) for line in (trained / "full" / "s0" / "metrics.jsonl").read_text().splitlines()]
    evals = [row for row in rows if row["kind"] == "eval"]
    assert [row["epoch"] for row in evals] == [0, 1, 2]
    assert set(evals[0]) >= {"acc", "cka", "ece", "retention/demo_fashion/knn", "retention/demo_fashion/cka"}
    assert evals[0]["cka"] == pytest.approx(1)
    assert evals[0]["retention/demo_fashion/cka"] == pytest.approx(1)
    report = json.loads((trained / "full" / "s0" / "metrics.json").read_text())
    best = next(row for row in evals if row["epoch"] == report["model"]["epoch"])
    assert report["retention"]["demo_fashion"]["knn_after"] == best["retention/demo_fashion/knn"]
    assert set(report["metrics"]) == {"acc", "cka"}  # the report holds what the recipe asked for


def test_a_trajectory_needs_a_validation_split(rift, write_recipe, tiny_recipe):
    del tiny_recipe["data"]["val"]
    tiny_recipe["eval"]["trajectory"] = True
    code, _, err = rift("recipes", "validate", write_recipe(tiny_recipe))
    assert (code, err.splitlines()[0]) == (
        2,
        "error: recipe tiny.yaml:24: eval.trajectory: needs a validation split: set data.val",
    )


def test_correlate_over_the_trajectories(rift, trained, tmp_path):
    code, out, err = rift("correlate", trained / "full", trained / "rift", trained / "lora", "--out", "c", "--bins", 4, "--json")
    assert code == 0, err
    report = read(out)
    assert {row["y"] for row in report["rows"]} == {"acc", "ece", "retention/demo_fashion/knn"}
    assert all(row["points"] == 5 * 3 for row in report["rows"])
    (row,) = [row for row in report["rows"] if row["y"] == "ece"]
    single = [(p["cka"], p["ece"]) for p in report["single"]]
    assert row["single_r"] == pytest.approx(np.corrcoef(*zip(*single, strict=True))[0, 1])
    cells = [cell for cell in report["binned"] if cell["y"] == "ece"]
    assert sum(cell["count"] for cell in cells) == 15
    pairs = [(c["x_mean"], c["y_mean"]) for c in cells]
    assert len(pairs) > 2
    assert row["binned_r"] == pytest.approx(np.corrcoef(*zip(*pairs, strict=True))[0, 1])
    assert {p.name for p in (tmp_path / "c").iterdir()} >= {
        "metrics.json",
        "table.csv",
        "binned.csv",
        "single.csv",
        "correlate.png",
    }


def test_bins_and_outliers():
    from riftcli.evaluation.evaluators.correlation import bin_means, line

    pairs = [(0.0, 1.0), (0.1, 3.0), (1.0, 5.0), (0.45, 7.0)]
    found, left_out = bin_means(pairs, 3, 0)
    assert [(cell["bin"], cell["count"], cell["y_mean"]) for cell in found] == [(0, 2, 2), (0.5, 1, 7), (1, 1, 5)]
    assert left_out == 0
    crowd = [(0.0, y) for y in (1.0, 1.1, 0.9, 1.0, 50.0)]
    found, left_out = bin_means(crowd, 3, 1.5)
    assert (left_out, found[0]["count"], found[0]["y_mean"]) == (1, 4, 1.0)
    assert line([(0, 1), (1, 2)])["r"] is None
    assert line([(0, 1.0), (1, 3.0), (2, 5.0)])["slope"] == pytest.approx(2)


def test_correlate_says_what_was_measured(rift, trained):
    code, _, err = rift("correlate", trained / "full", "--y", "auroc")
    known = "acc, ece, retention/demo_fashion/cka, retention/demo_fashion/knn"
    assert (code, err) == (2, f"error: --y auroc: no run measured it; measured: {known}\n")


def test_centrality_is_the_distance_to_the_mean(rift, trained):
    code, out, err = rift("centrality", trained / "full", trained / "rift", "--pretrained", "--json")
    assert code == 0, err
    report = read(out)
    states = [load_file(trained / "full" / f"s{i}" / "model" / "model.safetensors") for i in range(2)]
    names = [name for name in states[0] if not name.startswith("head.")]
    centre = {name: (states[0][name].double() + states[1][name].double()) / 2 for name in names}
    away = math.sqrt(sum(float((states[0][n].double() - centre[n]).square().sum()) for n in names))
    length = math.sqrt(sum(float(centre[n].square().sum()) for n in names))
    row = next(row for row in report["rows"] if row["model"] == "full/s0")
    assert (row["method"], row["distance"]) == ("full", pytest.approx(away))
    assert row["relative"] == pytest.approx(away / length)
    assert row["from_pretrained"] > 0
    assert [mean["method"] for mean in report["averages"]] == ["full", "full + rift"]


def test_a_centre_needs_two_runs(rift, trained):
    code, _, err = rift("centrality", trained / "full", trained / "lora")
    assert (code, err) == (2, "error: lora: the only run of method 'lora'; a centre needs at least two\n")


# ---- compare, report


def test_compare_means_spread_best_and_change(rift, trained, tmp_path):
    code, out, err = rift("compare", trained / "full", trained / "rift", trained / "lora", "--out", "t", "--json")
    assert code == 0, err
    report = read(out)
    assert report["baseline"] == "full"
    cells = {(row["run"], row["column"]): row for row in report["rows"]}
    accs = [json.loads((trained / "rift" / f"s{i}" / "metrics.json").read_text())["metrics"]["acc"]["value"] for i in range(2)]
    base = cells["full", "acc"]["mean"]
    found = cells["rift", "acc"]
    assert found["mean"] == pytest.approx(np.mean(accs))
    assert found["std"] == pytest.approx(np.std(accs, ddof=1))
    assert found["change"] == pytest.approx(np.mean(accs) / base - 1)
    bases = [json.loads((trained / "full" / f"s{i}" / "metrics.json").read_text())["metrics"]["cka"]["value"] for i in range(2)]
    ckas = [json.loads((trained / "rift" / f"s{i}" / "metrics.json").read_text())["metrics"]["cka"]["value"] for i in range(2)]
    differences = np.subtract(ckas, bases)
    t = abs(differences.mean()) / (differences.std(ddof=1) / np.sqrt(2))
    assert cells["rift", "cka"]["p"] == pytest.approx(1 - 2 / np.pi * np.arctan(t)), "Student's t with one degree of freedom"
    assert f" %, p {cells['rift', 'cka']['p']:.2g})" in err
    assert cells["lora", "acc"]["p"] is None, "one run has no partner"
    assert cells["lora", "acc"]["std"] is None
    assert cells["full", "acc"]["change"] is None
    top = max(cells[name, "acc"]["mean"] for name in ("full", "rift", "lora"))
    assert [cells[name, "acc"]["best"] for name in ("full", "rift", "lora")] == [
        cells[name, "acc"]["mean"] == top for name in ("full", "rift", "lora")
    ]
    lowest = min(cells[name, "trainable parameters"]["mean"] for name in ("full", "rift", "lora"))
    assert cells["lora", "trainable parameters"]["mean"] == lowest
    assert cells["lora", "trainable parameters"]["best"]
    text = (tmp_path / "t" / "compare.md").read_text()
    assert text.splitlines()[0].startswith("| run | acc | cka |")
    assert f"{found['mean']:.4f} +- {found['std']:.4f}" in text
    latex = (tmp_path / "t" / "compare.tex").read_text()
    assert r"\begin{tabular}" in latex
    assert r"$\pm$" in latex
    assert "%)" not in latex.replace(r"\%)", "")
    assert len(list(csv.DictReader((tmp_path / "t" / "compare.csv").open()))) == len(report["rows"])


def test_compare_over_data_sets_has_a_mean_and_rows_by_method():
    from riftcli.report.compare import compare
    from riftcli.report.records import Record

    def recipe(data: str, regularizer: str) -> recipes.Recipe:
        text = f"model: {{name: vit_tiny_patch16_224}}\ndata: {{format: {data}}}\nregularizer: {{name: {regularizer}}}\n"
        return recipes.parse(text, "r.yaml", [])

    def made(data: str, regularizer: str, acc: float) -> Record:
        return Record(f"{data}-{regularizer}", data, recipe(data, regularizer), data, 0, Path(), {"acc": acc}, {"acc": True})

    scores = [("digits", "none", 0.5), ("demo_fashion", "none", 0.7), ("digits", "rift", 0.6), ("demo_fashion", "rift", 0.6)]
    records = [made(*score) for score in scores]
    found = compare(records, [], None, by_method=False)
    assert found.columns == ["acc (digits)", "acc (demo_fashion)", "acc (mean)"]
    assert found.rows["full"]["acc (mean)"].mean == pytest.approx(0.6)
    assert found.rows["full + rift"]["acc (digits)"].change == pytest.approx(0.2)
    assert [found.rows[name]["acc (demo_fashion)"].best for name in ("full", "full + rift")] == [True, False]


def test_a_t_test_is_of_the_same_seeds_and_of_nothing_else():
    from scipy.stats import ttest_rel

    from riftcli.report.compare import paired_p

    ours, base = [((0, 0), 0.8), ((1, 0), 0.9), ((2, 0), 0.85)], [((1, 0), 0.7), ((0, 0), 0.75), ((2, 0), 0.71)]
    assert paired_p(ours, base) == pytest.approx(ttest_rel([0.8, 0.9, 0.85], [0.75, 0.7, 0.71]).pvalue)
    assert paired_p(ours, base[:2]) is None, "other seeds"
    assert paired_p(ours[:1], base[1:2]) is None, "one seed"
    assert paired_p([*ours, ours[0]], [*base, base[1]]) is None, "a seed twice: what belongs to what?"
    assert paired_p(ours, ours) is None, "no differences"
    assert paired_p([((0, 0), 0.824), ((1, 0), 0.831)], [((0, 0), 0.812), ((1, 0), 0.819)]) is None, "equal but for rounding"


def test_runs_are_paired_by_seed_and_by_the_very_fold():
    from riftcli.report.records import Record

    def repeat(val: str, seed: int = 0) -> tuple:
        text = f"model: {{name: vit_tiny_patch16_224}}\ndata: {{format: digits, val: {val}}}\n"
        return Record("r", "r", recipes.parse(text, "r.yaml", []), "digits", seed, Path(), {}).repeat

    first = repeat("{from: train, folds: 5, fold: 0}")
    assert first == repeat("{from: train, folds: 5, fold: 0}")
    others = ["{from: train, folds: 5, fold: 1}", "{from: train, folds: 4, fold: 0}", "{from: train, folds: 5, fold: 0, seed: 1}"]
    assert first not in [repeat(other) for other in others]
    assert repeat("null") == repeat("test") == repeat("{from: train, fraction: 0.2}") == (0,)
    assert repeat("null", seed=3) == (3,)


def test_compare_by_a_measure_that_the_baseline_lacks(rift, run, trained, tmp_path):
    other = shutil.copytree(trained / "rift" / "s0", tmp_path / "other")
    assert rift("sharpness", "--run", other)[0] == 0
    code, out, err = rift("compare", run, other, "--metrics", "sharpness", "--json")
    assert code == 0, err
    (row,) = read(out)["rows"]
    assert (row["run"], row["change"], row["p"]) == ("other", None, None)


def test_a_page_where_a_method_is_missing_on_one_data_set(rift, run, trained, write_recipe, tiny_recipe, tmp_path):
    tiny_recipe["data"] = {"format": "image_folder", "root": make_folder(tmp_path).partition(":")[2]}
    tiny_recipe |= {"regularizer": {"name": "none"}, "train": {"epochs": 1, "batch_size": 4, "workers": 0}}
    code, _, err = rift("finetune", "--recipe", write_recipe(tiny_recipe), "--out", "shapes-run")
    assert code == 0, err
    other = shutil.copytree(trained / "rift" / "s0", tmp_path / "other")
    code, _, err = rift("report", run, "shapes-run", other, "--out", "page.html")
    assert code == 0, err
    assert "acc (shapes)" in (tmp_path / "page.html").read_text()


def test_the_spread_of_many_runs_has_a_density_and_of_two_marks_only(trained):
    import base64
    from dataclasses import replace

    from riftcli.evaluation.candidates import open_runs
    from riftcli.report import figures
    from riftcli.report.records import record

    (first, second), one = [record(s) for s in open_runs([trained / "full"], [])], figures.colours(["full", "narrow"])
    many = [replace(first, label=f"n{i}", group="narrow", values={"cka": 0.99 + 1e-6 * i}) for i in range(figures.ENOUGH)]

    def areas(groups) -> int:
        found = figures.spread_of_runs(groups, "cka", one)
        return base64.b64decode(found.picture.partition(",")[2]).decode().count("FillBetween")

    assert figures.spread_of_runs({"full": [first]}, "cka", one) is None
    assert areas({"full": [first, second]}) == 0
    assert areas({"full": [first, second], "narrow": many}) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--metrics", "accc"], "--metrics accc: no run has it (did you mean 'acc'?); measured: acc, cka, "),
        (["--baseline", "fulll"], "--baseline fulll: no such row (did you mean 'full'?); rows: full, rift"),
    ],
)
def test_compare_refuses(rift, trained, options, message):
    code, _, err = rift("compare", trained / "full", trained / "rift", *options)
    assert code == 2
    assert err.startswith(f"error: {message}")


def test_an_unfinished_run_is_named(rift, run):
    (run / "metrics.json").unlink()
    assert rift("compare", run)[::2] == (2, f"error: {run}: no metrics.json; the run has not finished\n")


def test_report_holds_everything_and_needs_no_network(rift, run, trained, tmp_path):
    other = shutil.copytree(trained / "rift" / "s0", tmp_path / "other")
    code, _, err = rift("report", run, other, "--evaluate", "--out", "page.html")
    assert code == 0, err
    assert err.splitlines()[-1] == "page: page.html"
    page = (tmp_path / "page.html").read_text()
    for wanted in (
        "Kept against learned",
        "Calibration",
        "Confusion matrix of myrun",
        "PCA map of myrun",
        "t-SNE map of other",
        "Layers of myrun",
        "Attention of myrun",
        "sharpness",
        "validation retention/demo_fashion/knn",
        "strength: 1.0",
    ):
        assert wanted in page, wanted
    assert "http" not in page.replace("http://www.w3.org", "")
    assert "src=&#" not in page
    assert page.count("data:text/csv;base64,") > 10
    code, _, err = rift("report", run)
    assert (code, err) == (0, f"page: {run / 'report.html'}\n")


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_in_a_real_browser(trained, tmp_path, width):
    """Every picture loads, and nothing but tables and figures is wider than the screen."""
    page = (trained / "full" / "s0" / "report.html").read_text()
    probe = """<script>addEventListener("load", () => { const bad = [...document.images].filter(i => !i.naturalWidth).length;
    document.body.dataset.found = `images ${document.images.length} broken ${bad} `
      + `overflow ${document.documentElement.scrollWidth > document.documentElement.clientWidth}`; })</script>"""
    shown = tmp_path / "page.html"
    shown.write_text(page.replace("</body>", probe + "</body>"))
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
    ]
    options += ["--disable-component-update", "--disable-sync", f"--user-data-dir={tmp_path / 'profile'}"]
    done = subprocess.run(
        [CHROMIUM, *options, f"--window-size={width},2000", "--virtual-time-budget=5000", "--dump-dom", f"file://{shown}"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    count = page.count("<img ")
    assert count >= 5
    assert f'data-found="images {count} broken 0 overflow false"' in done.stdout, done.stderr[-2000:]
