"""What did not agree with others' implementations, or was a number where there is none: peft, scikit-learn, timm's transforms,
LayerNorm's lost direction, scales, constants and NaN.
"""

from __future__ import annotations

import copy
import itertools
import json
import math
import shutil
import types
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from riftcli import catalog
from riftcli.errors import ModelError
from riftcli.protocols import Predictions

TINY = {"img_size": 28, "patch_size": 14, "embed_dim": 48, "depth": 2, "num_heads": 4}
IMAGES = torch.randn(3, 3, 28, 28, generator=torch.Generator().manual_seed(1))


def build():
    torch.manual_seed(0)
    vit = timm.create_model("vit_tiny_patch16_224", num_classes=5, **TINY)
    for p in vit.parameters():
        p.data += 0.05 * torch.randn_like(p)
    return vit.eval()


def disturb(vit):
    g = torch.Generator().manual_seed(5)
    for p in vit.parameters():
        if p.requires_grad:
            p.data += 0.05 * torch.randn(p.shape, generator=g)


SLICED = [c for k in range(4) for c in itertools.combinations("qkv", k)] + [("qkv",)]
WHOLES = [c for k in range(4) for c in itertools.combinations(("proj", "fc1", "fc2"), k)]


@pytest.mark.parametrize("dora", [False, True])
def test_peft_loads_every_combination_of_targets(dora, tmp_path):
    peft = pytest.importorskip("peft")
    from riftcli.methods.adapters.lora import Lora
    from riftcli.models.peft_format import load_adapter, save_adapter

    base = build()
    for targets in [[*a, *b] for a in SLICED for b in WHOLES if a + b]:
        vit = copy.deepcopy(base)
        Lora(targets=targets, rank=2, alpha=3.0, dora=dora).prepare(vit)
        disturb(vit)
        folder = tmp_path / "-".join(targets)
        save_adapter(folder, vit, {"name": "lora"}, "a base model")
        expected = vit.eval()(IMAGES)
        for loaded in (load_adapter(copy.deepcopy(base), folder), peft.PeftModel.from_pretrained(copy.deepcopy(base), folder)):
            torch.testing.assert_close(loaded.eval()(IMAGES), expected, rtol=1e-5, atol=1e-5, msg=str(targets))


@pytest.mark.parametrize("init", ["pissa", "pissa_niter_4", "olora"])
def test_adapters_that_changed_their_base_are_refused(init, tmp_path):
    peft = pytest.importorskip("peft")
    from riftcli.models.peft_format import load_adapter

    base = build()
    options = {"r": 4, "init_lora_weights": init, "target_modules": ["qkv"], "modules_to_save": ["head"]}
    peft.get_peft_model(copy.deepcopy(base), peft.LoraConfig(**options)).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=f"init_lora_weights '{init}' changes the base weights too"):
        load_adapter(copy.deepcopy(base), tmp_path)


def seen(task, classes, n=20, targets=None):
    torch.manual_seed(0)
    shape = (n,) if task == "multiclass" else (n, classes)
    targets = torch.randint(0, max(1, classes if task == "multiclass" else 2), shape) if targets is None else targets
    return Predictions(torch.randn(n, classes), targets, torch.randn(n, 6), [f"c{i}" for i in range(classes)], task)


@pytest.mark.parametrize(("task", "classes"), [("multiclass", 1), ("multilabel", 1), ("multiclass", 3), ("multilabel", 3)])
@pytest.mark.parametrize("single", [False, True])
def test_every_metric_is_a_number_or_null_with_a_reason(task, classes, single):
    shown = seen(task, classes)
    if single:
        shown = seen(task, classes, targets=torch.zeros_like(shown.targets))
    for name in catalog.names("metric"):
        metric = catalog.component("metric", name)()
        if not metric.needs_pretrained:
            found = metric.compute(shown)
            assert found["reason"] if found["value"] is None else math.isfinite(found["value"]), name


def test_f1_is_scikit_learns():
    from sklearn.metrics import f1_score

    shown = seen("multiclass", 4, 200)
    want = f1_score(shown.targets, shown.logits.argmax(1), average="macro")
    assert catalog.component("metric", "f1")().compute(shown)["value"] == pytest.approx(want, abs=1e-12)
    many = seen("multilabel", 4, 200)
    want = f1_score(many.targets, many.logits > 0, average="macro")
    assert catalog.component("metric", "f1")().compute(many)["value"] == pytest.approx(want, abs=1e-12)


def kinds():
    from timm.data import resolve_data_config
    from timm.models import get_pretrained_cfg

    found = {}
    for name in timm.list_pretrained():
        config = get_pretrained_cfg(name).to_dict()
        data = resolve_data_config({}, pretrained_cfg=config)
        found.setdefault((data["input_size"], data["crop_pct"], data["crop_mode"], data["interpolation"]), (name, config, data))
    return found.values()


def test_images_are_prepared_as_timm_does_for_every_configuration_that_it_lists():
    from timm.data import create_transform

    from riftcli.data.transforms import EvalTransform, Preprocessing

    noise = torch.randint(0, 255, (90, 200, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8).numpy()
    wide = Image.fromarray(noise)
    for name, config, data in kinds():
        model = types.SimpleNamespace(pretrained_cfg=config)
        if data["input_size"][1] != data["input_size"][2]:
            with pytest.raises(ModelError, match="only square ones"):
                Preprocessing.of_model(model, None)
            continue
        ours = Preprocessing.of_model(model, None)
        for image in (wide, wide.rotate(90, expand=True)):
            got = ours.normalise(EvalTransform(ours)(image)[None])[0]
            torch.testing.assert_close(got, create_transform(**data)(image), rtol=0, atol=1e-4, msg=name)


SIMILARITIES = [
    "cka",
    "cka_debiased",
    "cka_rbf",
    "rsa",
    "rsa_centred",
    "rsa_spearman",
    "rsa_euclid",
    "procrustes",
    "cca",
    "svcca",
    "mutual_knn",
    "overlap",
    "effective_rank",
]


@pytest.mark.parametrize("name", [*SIMILARITIES, "knn"])
@pytest.mark.parametrize("kind", ["exact", "rounded", "small"])
def test_constant_features_are_undefined_in_every_measure(name, kind):
    generator = torch.Generator().manual_seed(0)
    row, noise = torch.randn(1, 12, generator=generator), torch.randn(80, 12, generator=generator)
    constant = row * {"exact": 0 * noise + 1, "rounded": 1 + 6e-8 * noise, "small": (1 + 6e-8 * noise) * 1e-9}[kind]
    other = torch.randn(80, 12, generator=generator)
    for before, after in ((constant, other), (other, constant)):
        if name == "knn" and after is other:
            continue
        shown = Predictions(torch.zeros(80, 2), torch.arange(80) % 2, after, ["a", "b"], "multiclass", before)
        found = catalog.component("metric", name)().compute(shown)
        assert found["value"] is None
        assert "constant" in found["reason"]


@pytest.mark.parametrize("kind", ["one-hot", "orthogonal", "on a ray"])
def test_ranks_of_rounding_are_undefined(kind):
    from riftcli.functional.neighbours import mutual_knn
    from riftcli.functional.rsa import rsa

    generator = torch.Generator().manual_seed(0)
    table = {
        "one-hot": torch.eye(40),
        "orthogonal": torch.linalg.qr(torch.randn(40, 40, generator=generator))[0],
        "on a ray": torch.rand(40, 1, generator=generator) * torch.randn(1, 9, generator=generator),
    }[kind]
    other = torch.randn(40, 12, generator=generator)
    assert mutual_knn(table, other) is None
    assert rsa(table, other) is None
    assert rsa(table, other, rank=True) is None


def test_cca_leaves_out_the_direction_that_a_layer_norm_removes():
    from riftcli.functional.alignment import canonical_correlations

    torch.manual_seed(0)
    x, y = torch.randn(400, 24), torch.randn(400, 24)
    for kind in (torch.float32, torch.float64):
        norm = torch.nn.LayerNorm(24).to(kind)
        with torch.no_grad():
            norm.weight.uniform_(0.5, 2)
            norm.bias.normal_(0, 5)
            before, after = norm(x.to(kind)), norm((x + y).to(kind))
        assert len(canonical_correlations(before, after)) == 23, kind


@pytest.mark.parametrize("debiased", [False, True])
@pytest.mark.parametrize("shape", [(128, 32), (32, 128)])
def test_cka_of_a_batch_does_not_know_the_scale(debiased, shape):
    from riftcli.functional.cka import cka, linear_cka

    torch.manual_seed(0)
    x = torch.randn(shape)
    y = x + torch.randn(shape)
    want = cka(x.double(), y.double(), debiased)
    for scale in (1e-8, 1e-3, 1e-2, 1.0, 1e6):
        small = (x * scale).requires_grad_()
        value = linear_cka(small, y * scale, debiased)
        assert float(value.detach()) == pytest.approx(want, abs=3e-6)
        (gradient,) = torch.autograd.grad(value, small)
        exact = x.double().requires_grad_()
        (right,) = torch.autograd.grad(linear_cka(exact, y.double(), debiased), exact)
        torch.testing.assert_close(gradient.double() * scale, right, rtol=1e-3, atol=1e-6)


COMMANDS = ["knn --run R", "eval --run R", "clinical --run R", "sharpness --run R", "similarity --run R", "retrieval --run R"]
COMMANDS += ["attention --run R", "predict R a.png", "align pretrained R", "centrality R R2"]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_model_with_nan_is_an_error_that_names_it(command, one_epoch_run, rift):
    shutil.copytree(one_epoch_run, "myrun")
    shutil.copytree(one_epoch_run, "other")
    path = Path("myrun/model/model.safetensors")
    weights = load_file(path)
    weights["blocks.0.mlp.fc1.weight"][3, 2] = float("nan")
    save_file(weights, path, metadata={"format": "pt"})
    Path("myrun/model/manifest.json").unlink()
    Image.new("RGB", (16, 16)).save("a.png")
    code, _, err = rift(*({"R": "myrun", "R2": "other"}.get(word, word) for word in command.split()))
    assert code == 4, err
    assert "myrun/model: blocks.0.mlp.fc1.weight has 1 of " in err.splitlines()[-1]
    assert err.splitlines()[-1].endswith("values that are NaN or inf; get the file again")


def test_merge_of_mixed_targets_gives_the_logits_of_the_run(rift, tiny_recipe, write_recipe, tiny_weights):
    import riftcli

    tiny_recipe |= {"adapter": {"name": "lora", "targets": ["q", "v", "fc1", "proj"]}, "regularizer": {"name": "none"}}
    tiny_recipe |= {"optim": {"lr": 0.01}}
    assert rift("finetune", "--recipe", write_recipe(tiny_recipe), "--out", "r")[0] == 0
    x = torch.randn(4, 3, 16, 16)
    for words in (["r"], ["r/adapter", "--model", f"local-dir:{tiny_weights}"]):
        out = f"m{len(words)}"
        code, _, err = rift("merge", *words, "--out", out)
        assert code == 0, err
        torch.testing.assert_close(riftcli.load(out)(x), riftcli.load("r")(x), rtol=1e-5, atol=1e-5)
    code, _, err = rift("merge", "r/adapter", "--model", "vit_tiny_patch16_224", "--out", "m3")
    assert code == 4, err


def test_what_an_interval_covers_is_said(one_epoch_run, rift):
    shutil.copytree(one_epoch_run, "myrun")
    code, _, err = rift("similarity", "--run", "myrun", "--bootstrap", 5)
    assert code == 0, err
    assert (
        "[low, high]: 95 % intervals of the measure with this number of images; of the measure with any number of images: "
        "cka_debiased, rsa, rsa_spearman" in err.splitlines()
    )
    rows = json.loads(Path("myrun/similarity/digits-test/metrics.json").read_text())["rows"]
    assert {row["metric"] for row in rows if row["interval"] == "population"} == {"cka_debiased", "rsa", "rsa_spearman"}


def test_sharpness_says_that_it_is_a_lower_bound(one_epoch_run, rift):
    shutil.copytree(one_epoch_run, "myrun")
    for options, hint in (
        (
            [],
            "at least: sam looks at one point; --method pga --steps 60 --restarts 3 looks further, which tells with a larger rho",
        ),
        (["--method", "pga", "--steps", 2, "--restarts", 2], "at least: the highest of the points that were looked at"),
    ):
        code, _, err = rift("sharpness", "--run", "myrun", "--rho", 0.05, *options)
        assert code == 0 and hint in err.splitlines(), err
    rows = [json.loads(path.read_text())["rows"][0] for path in Path("myrun/sharpness").glob("*/metrics.json")]
    assert {(row["method"], row["restarts"], row["bound"]) for row in rows} == {("sam", 0, "lower"), ("pga", 2, "lower")}
    by_method = {row["method"]: row["sharpness"] for row in rows}
    assert by_method["pga"] >= by_method["sam"], "the point of sam is one of those of pga"


def test_the_debiased_rank_does_not_depend_on_the_number_of_samples():
    from riftcli.functional.covariance import centre, effective_rank, effective_rank_debiased, eigenvalues

    scales = torch.linspace(2, 0.2, 16, dtype=torch.float64)
    truth = float(scales.square().sum() ** 2 / scales.pow(4).sum())
    generator = torch.Generator().manual_seed(0)
    draws = [torch.randn(20, 16, generator=generator, dtype=torch.float64) * scales + 3 for _ in range(300)]
    plain = sum(float(effective_rank(eigenvalues(centre(rows)))) for rows in draws) / len(draws)
    debiased = sum(effective_rank_debiased(rows) for rows in draws) / len(draws)
    assert abs(debiased / truth - 1) < 0.05 < abs(plain / truth - 1)
    assert effective_rank_debiased(draws[0][:3]) is None
