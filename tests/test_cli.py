"""Whole commands, in process: what they leave behind, what they say, how they end."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import timm
import torch
from jsonschema import Draft202012Validator
from PIL import Image
from safetensors.torch import load_file

import riftcli

SCHEMA = json.loads((Path(riftcli.__file__).parent / "assets" / "metrics.schema.json").read_text())


def valid(report: dict) -> dict:
    Draft202012Validator(SCHEMA).validate(report)
    return report


def rows(run: Path, kind: str) -> list[dict]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["kind"] == kind]


def files(run: Path) -> set[str]:
    return {p.relative_to(run).as_posix() for p in run.rglob("*") if p.is_file()}


def state(run: Path) -> dict[str, torch.Tensor]:
    """Every tensor of the newest checkpoint, by file and name."""
    newest = sorted((run / "last").glob("step-????????"))[-1]
    return {f"{f.name}/{k}": v for f in newest.glob("*.safetensors") for k, v in load_file(f).items()}


def assert_same_state(one: Path, two: Path) -> None:
    a, b = state(one), state(two)
    assert a.keys() == b.keys()
    for key in a:
        assert torch.equal(a[key], b[key]), key


# ---- a run


@pytest.mark.page
def test_a_run_leaves_the_documented_folder(rift, tiny_recipe, write_recipe, tmp_path, read_json):
    tiny_recipe["retention"] = [
        {"format": "demo_fashion", "test": {"from": "test", "limit": 60}, "train": {"from": "test", "limit": 60}}
    ]
    code, out, err = rift("finetune", "--recipe", write_recipe(tiny_recipe), "--out", "r", "--json")
    assert code == 0, err
    run = tmp_path / "r"
    checkpoint = {"manifest.json", "state.json"} | {f"{n}.safetensors" for n in ("model", "optimizer", "penalty", "random")}
    assert files(run) == {
        ".lock",
        "run.json",
        "recipe.yaml",
        "recipe.resolved.yaml",
        "train.log",
        "metrics.jsonl",
        "metrics.json",
        "report.html",
        "model/config.json",
        "model/model.safetensors",
        "model/README.md",
        "model/manifest.json",
        "plots/curves.png",
        "plots/curves.csv",
        "eval/digits-test/metrics.json",
        "eval/digits-test/predictions.csv",
        "eval/digits-test/mistakes.csv",
        *(f"eval/digits-test/mistakes/{number:02d}.jpg" for number in range(1, 13)),
        "eval/digits-test/confusion_matrix.csv",
        "eval/digits-test/reliability.csv",
        "eval/digits-test/reliability.png",
        *(f"last/step-0000000{step}/{name}" for step in (4, 8) for name in checkpoint),
    }
    report = valid(read_json(run / "metrics.json"))
    assert json.loads(out) == report
    assert report["metrics"]["acc"]["n"] == 60
    assert 0 < report["metrics"]["cka"]["value"] < 1
    keys = {"n", "bank", "k", "knn_before", "knn_after", "cka", "probe_before", "probe_after", "mutual_knn"}
    assert set(report["retention"]["demo_fashion"]) == keys
    status = read_json(run / "run.json")
    assert (status["status"], status["seed"], status["steps"]) == ("completed", 0, 8)
    steps = rows(run, "step")
    assert [row["step"] for row in steps] == list(range(1, 9))
    assert {
        "loss", "task_loss", "penalty_loss", "similarity_raw", "similarity_relative", "spectral_bound", "trace_ratio",
        "effective_rank", "q_distance", "lr", "grad_norm", "images_per_second",
    } <= set(steps[0])  # fmt: skip
    assert steps[0]["loss"] == pytest.approx(steps[0]["task_loss"] + steps[0]["penalty_loss"])
    assert steps[0]["penalty_loss"] == pytest.approx(steps[0]["similarity_relative"], rel=1e-4)
    assert [row["epoch"] for row in rows(run, "eval")] == [0, 1, 2]
    assert rows(run, "eval")[0]["cka"] == pytest.approx(1, abs=1e-6), "before training nothing has moved"
    assert "accuracy: " in err
    assert "kept on demo_fashion: kNN " in err
    assert "\x1b" not in err, "no terminal control codes in a log"
    assert (run / "report.html").read_text().count("data:image/svg+xml;base64,") >= 8  # curves, reliability, confusion matrix


def test_the_spectrum_is_looked_at_a_hundred_times(rift, tiny_recipe, write_recipe, tmp_path):
    """At every step of a short run; else at the first, the last, and as often as the recipe says. Nothing else differs."""
    rows = {}
    for every in (None, 3):
        tiny_recipe["train"]["diagnose_every_steps"] = every
        out = f"every-{every}"
        assert rift("finetune", "--recipe", write_recipe(tiny_recipe), "--out", out)[0] == 0
        lines = (tmp_path / out / "metrics.jsonl").read_text().splitlines()
        rows[every] = [row for row in map(json.loads, lines) if row["kind"] == "step"]
    assert [row["step"] for row in rows[None]] == [row["step"] for row in rows[3]] == list(range(1, 9))
    assert [row["step"] for row in rows[None] if "spectral_bound" in row] == list(range(1, 9))
    assert [row["step"] for row in rows[3] if "spectral_bound" in row] == [1, 3, 6, 8]
    for one, other in zip(rows[None], rows[3], strict=True):
        assert other["trace_ratio"] == pytest.approx(one["trace_ratio"], rel=1e-4), (
            "whether it collapses is watched at every step"
        )
        same = other.keys() - {"images_per_second", "trace_ratio"}
        assert {key: one[key] for key in same} == {key: other[key] for key in same}


@pytest.mark.parametrize(
    "total, log_every, every, looks", [(10_000, 49, None, 199), (3_000, 49, None, 61), (80, 1, None, 80), (80, 1, 3, 28)]
)
def test_a_look_is_taken_at_the_logged_step_that_comes_next(total, log_every, every, looks):
    from riftcli.training.setup import Setup

    train = SimpleNamespace(diagnose_every_steps=every, log_every_steps=log_every)
    setup = SimpleNamespace(recipe=SimpleNamespace(train=train), total_steps=total)
    found = sum(Setup.diagnosed(setup, step) for step in range(1, total + 1) if step % log_every == 0)
    assert abs(found - looks) <= 1


def test_pixels_by_torchvision_are_part_of_a_run(rift, tiny_recipe, write_recipe, read_json, tmp_path):
    """The folder of weights remembers how its images were resized; accuracy and CKA are next to the same."""
    tiny_recipe["input"] = {"resize": "tensor"}
    tiny_recipe["augment"] = {"crop_min_area": 0.6, "flip": 0.5}
    assert rift("finetune", "--recipe", write_recipe(tiny_recipe), "--out", "r")[0] == 0
    assert read_json(tmp_path / "r/model/config.json")["rift"]["resize"] == "tensor"
    assert "resize" not in read_json(tmp_path / "r/model/config.json")["pretrained_cfg"]
    report = read_json(tmp_path / "r/metrics.json")["metrics"]
    ask = ("eval", "--run", "r", "--metrics", "acc,cka,nll", "--json")
    same = json.loads(rift(*ask)[1])["metrics"]
    assert same["cka"]["value"] == report["cka"]["value"]
    by_pillow = json.loads(rift(*ask, "--set", "input.resize=pil")[1])["metrics"]
    assert 0 < abs(by_pillow["cka"]["value"] - report["cka"]["value"]) < 1e-3
    shutil.copytree(tmp_path / "r/model", tmp_path / "alone")
    for settings, expected in (([], same), (["--set", "input.resize=pil"], by_pillow)):
        data = ["--set", "data.format=digits", "--set", "data.test={from: test, limit: 60}", "--set", "eval.batch_size=16"]
        code, out, err = rift("eval", "--run", "alone", *data, *settings, "--metrics", "acc,nll", "--json")
        assert code == 0, err
        assert json.loads(out)["metrics"]["nll"]["value"] == expected["nll"]["value"]


def test_timm_gets_the_same_predictions_from_the_saved_folder(rift, tiny_recipe, write_recipe, tmp_path):
    tiny_recipe["train"]["epochs"] = 1
    assert rift("finetune", "--recipe", write_recipe(tiny_recipe), "--out", "r")[0] == 0
    model = timm.create_model(f"local-dir:{tmp_path}/r/model", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
    from riftcli.data.datasets.digits import Digits
    from riftcli.data.holdout import limit

    split = limit(Digits().load("test"), 60, seed=0)
    with torch.inference_mode():
        logits = model(torch.stack([transform(split.read(i)) for i in range(60)]))
    lines = (tmp_path / "r/eval/digits-test/predictions.csv").read_text().splitlines()[1:]
    assert [line.split(",")[0] for line in lines] == split.ids
    theirs = logits.softmax(1).numpy()
    ours = torch.tensor([[float(p) for p in line.split(",")[3:]] for line in lines]).numpy()
    assert abs(theirs - ours).max() < 2e-5
    assert model.pretrained_cfg["label_names"] == split.classes


def test_eval_reads_the_newest_run_back(rift, tiny_recipe, write_recipe, tmp_path, read_json):
    recipe = write_recipe(tiny_recipe)
    assert rift("finetune", "--recipe", recipe)[0] == 0
    code, out, err = rift("eval", "--metrics", "acc,cka")
    assert code == 0, err
    run = next((tmp_path / "runs").iterdir())
    assert run.name.startswith("tiny-s0-")
    assert f"run: runs/{run.name} (the newest finished one)" in err
    trained, evaluated = read_json(run / "metrics.json"), valid(read_json(run / "eval/digits-test/metrics.json"))
    assert evaluated["command"] == "eval"
    assert out == ""
    for name in ("acc", "cka"):
        assert evaluated["metrics"][name]["value"] == pytest.approx(trained["metrics"][name]["value"], abs=1e-9)
    assert evaluated["data"]["fingerprint"] == trained["data"]["fingerprint"]
    code, out, err = rift("eval", "--run", run / "model", "--metrics", "ece, f1", "--split", "val", "--json")
    assert code == 0, err
    report = valid(json.loads(out))
    assert set(report["metrics"]) == {"ece", "f1"}
    assert (report["data"]["split"], report["data"]["n"]) == ("val", 32)


def test_linear_probing_leaves_the_backbone_bitwise_alone(rift, tiny_recipe, write_recipe, tiny_weights, read_json, monkeypatch):
    from riftcli.evaluation import features

    encoded: list[str] = []
    real = features.encode_split
    monkeypatch.setattr(features, "encode_split", lambda model, split, *a: encoded.append(split.name) or real(model, split, *a))
    for augment in ({}, {"crop_min_area": 0.5}):
        encoded.clear()
        tiny_recipe |= {"adapter": {"name": "linear"}, "augment": augment}
        tiny_recipe["eval"]["cache"] = None  # of another run they would be read
        code, _, err = rift("finetune", "--recipe", write_recipe(tiny_recipe), "--out", f"r{len(augment)}")
        assert code == 0, err
        assert "warning: the regularizer has no effect" in err
        run = Path(f"r{len(augment)}")
        before, after = load_file(tiny_weights / "model.safetensors"), load_file(run / "model/model.safetensors")
        assert all(torch.equal(after[key], before[key]) for key in before)
        report = read_json(run / "metrics.json")
        assert report["metrics"]["cka"]["value"] >= 1 - 1e-6
        assert report["model"]["trainable_params"] == 330
        assert encoded.count("train") == 1, "the training features are encoded once"
        if not augment:  # and the epochs run on them: no image is decoded again
            from riftcli.training import streams

            def never(*arguments):
                raise AssertionError("an image dataset was built for training")

            with monkeypatch.context() as patch:
                patch.setattr(streams, "ImageDataset", never)
                assert rift("finetune", "--recipe", write_recipe(tiny_recipe), "--out", "again")[0] == 0


def test_scratch_is_measured_against_the_pretrained_model(rift, tiny_recipe, write_recipe, read_json):
    tiny_recipe["model"]["pretrained"] = False
    del tiny_recipe["regularizer"]
    tiny_recipe["train"]["head_init"] = "normal"
    code, _, err = rift("finetune", "--recipe", write_recipe(tiny_recipe), "--out", "r")
    assert code == 0, err
    assert read_json("r/metrics.json")["metrics"]["cka"]["value"] < 0.99


def test_strength_zero_is_plain_finetuning_bit_for_bit(rift, tiny_recipe, write_recipe):
    recipe = write_recipe(tiny_recipe)
    assert rift("finetune", "--recipe", recipe, "--out", "a", "--set", "regularizer.strength=0")[0] == 0
    assert rift("finetune", "--recipe", recipe, "--out", "b", "--set", "regularizer.name=none")[0] == 0
    assert rift("finetune", "--recipe", recipe, "--out", "c")[0] == 0
    assert_same_state(Path("a"), Path("b"))
    assert not torch.equal(state(Path("a"))["model.safetensors/norm.weight"], state(Path("c"))["model.safetensors/norm.weight"])


def test_repeats_give_mean_and_spread(rift, tiny_recipe, write_recipe, read_json):
    tiny_recipe["train"]["epochs"] = 1
    code, _, err = rift("finetune", "--recipe", write_recipe(tiny_recipe), "--out", "r", "--repeats", 2, "--seed", 5)
    assert code == 0, err
    report = valid(read_json("r/metrics.json"))
    values = [read_json(f"r/s{seed}/metrics.json")["metrics"]["acc"]["value"] for seed in (5, 6)]
    entry = report["metrics"]["acc"]
    assert entry["values"] == values
    assert entry["mean"] == pytest.approx(sum(values) / 2)
    assert entry["std"] == pytest.approx(abs(values[0] - values[1]) / 2**0.5)
    assert (entry["n"], report["seeds"]) == (2, [5, 6])
    # a series goes on where it was: two seeds are there, the third is new
    code, _, err = rift("finetune", "--recipe", write_recipe(tiny_recipe), "--out", "r", "--repeats", 3, "--seed", 5)
    assert code == 0, err
    assert "r/s5: already finished\nr/s6: already finished\n" in err
    assert read_json("r/metrics.json")["metrics"]["acc"]["values"][:2] == values
    Path("full").mkdir()
    Path("full/x").touch()
    code, _, err = rift("finetune", "--recipe", write_recipe(tiny_recipe), "--out", "full", "--repeats", 2)
    assert (code, err) == (2, "error: --out full: folder is not empty and holds no repeats; choose another --out\n")


def test_early_stopping_and_the_direction_of_a_metric(rift, tiny_recipe, write_recipe, read_json, monkeypatch):
    from riftcli.evaluation.metrics.calibration import ExpectedCalibrationError

    # one value per evaluation, the start included; lower is better, and neither NaN nor the larger value may win
    values = iter([0.9, 0.5, float("nan"), 0.2, 0.3, 0.8, 0.1, 0.1, 0.1])
    monkeypatch.setattr(ExpectedCalibrationError, "compute", lambda self, seen: {"value": next(values)})
    tiny_recipe["eval"] |= {"metrics": ["ece"], "best": "ece", "patience": 2}
    tiny_recipe["train"]["epochs"] = 8
    code, _, err = rift("finetune", "--recipe", write_recipe(tiny_recipe), "--out", "r")
    assert code == 0, err
    evals = rows(Path("r"), "eval")
    assert [row["ece"] for row in evals] == [0.9, 0.5, None, 0.2, 0.3, 0.8], "two worse ones in a row end it"
    assert "stopping early: ece has not improved for 2 evaluations" in err
    report = read_json("r/metrics.json")
    assert report["model"]["epoch"] == 3
    assert report["validation"] == {"ece": 0.2}
    assert "epoch 2/8: validation ece undefined" in err


def test_without_a_validation_split_the_last_weights_are_kept(rift, tiny_recipe, write_recipe, read_json):
    del tiny_recipe["data"]["val"]
    code, _, err = rift("finetune", "--recipe", write_recipe(tiny_recipe), "--out", "r")
    assert code == 0, err
    assert "no validation split: the last weights are kept" in err
    assert read_json("r/metrics.json")["model"]["epoch"] == 2


def test_csv_multilabel_run(rift, tiny_recipe, write_recipe, tmp_path, read_json):
    generator = torch.Generator().manual_seed(0)
    for split, count in (("train", 48), ("test", 24)):
        lines = ["file,a,b"]
        for i in range(count):
            bits = torch.randint(0, 2, (2,), generator=generator).tolist()
            pixels = torch.randint(0, 60, (16, 16, 3), generator=generator, dtype=torch.uint8)
            pixels[..., 0] += 150 * bits[0]
            pixels[..., 1] += 150 * bits[1]
            Image.fromarray(pixels.numpy()).save(tmp_path / f"{split}{i}.png")
            lines.append(f"{split}{i}.png,{bits[0]},{bits[1]}")
        (tmp_path / f"{split}.csv").write_text("\n".join(lines))
    tiny_recipe["data"] = {
        "format": "csv_table",
        "root": str(tmp_path),
        "labels": {"train": "train.csv", "test": "test.csv"},
        "image_column": "file",
        "label_columns": ["a", "b"],
        "task": "multilabel",
        "val": {"fraction": 0.34, "from": "train"},
    }
    tiny_recipe["eval"] = {"metrics": ["map", "auroc", "cka"], "best": "map"}
    tiny_recipe["train"] |= {"batch_size": 16, "epochs": 4}
    code, _, err = rift("finetune", "--recipe", write_recipe(tiny_recipe), "--out", "r")
    assert (code, err) == (
        2,
        "error: recipe tiny.yaml:1: objective.name: is for one label per image, and the data has several labels an image; "
        "use objective.name bce\n",
    ), "and nothing was written"
    assert not Path("r").exists()
    code, _, err = rift("finetune", "--recipe", write_recipe(tiny_recipe), "--out", "r", "--set", "objective.name=bce")
    assert code == 0, err
    report = valid(read_json("r/metrics.json"))
    assert report["metrics"]["map"]["value"] > 0.9
    assert set(report["confusion_matrix"]) == {"classes", "tp", "fp", "fn", "tn"}
    assert report["per_class"]["a"]["map"] == pytest.approx(report["metrics"]["map"]["value"], abs=0.1)


@pytest.mark.parametrize("regularizer", ["rift", "rsc", "none"])
def test_a_careless_start_is_warned_about_once(rift, tiny_recipe, write_recipe, regularizer):
    careless = {"rift": {"normalize": "raw", "strength": 1000.0}, "rsc": {}, "none": {}}
    tiny_recipe["regularizer"] = {"name": regularizer, **careless[regularizer]}
    tiny_recipe["optim"] = {"lr": 0.05, "clip_grad": None}
    code, _, err = rift("finetune", "--recipe", write_recipe(tiny_recipe), "--out", "r")
    assert code in (0, 7), err
    warnings = [line for line in err.splitlines() if line.startswith("warning: ")]
    assert "the representation has " in warnings[0]
    assert [line.partition(":")[2].partition(":")[0] for line in warnings[1:]] == [" training made it worse"] * (code == 0)
    unset = {"rift": ", regularizer.normalize relative, regularizer.compare features with q fixed"}
    assert warnings[0].endswith(
        f"What helps: schedule.warmup 0.1 to 0.15, optim.clip_grad 1.0{unset.get(regularizer, '')}, "
        "a lower optim.lr (4e-05 or less)"  # the head is fitted already
    )
    if code == 7:
        assert json.loads(Path("r/run.json").read_text())["status"] == "failed"


# ---- going on


CLOTHES = {"format": "demo_fashion", "split": {"from": "test", "limit": 70}, "batch_size": 24}
RESUMED: dict[str, dict] = {
    "rift": {"regularizer": {"name": "rift"}},
    "rsc": {"regularizer": {"name": "rsc"}},
    "ema on reference": {"regularizer": {"name": "rift", "estimator": "ema", "on": "reference"}, "reference": CLOTHES},
    "running mean": {"regularizer": {"name": "difference_vector", "strength": 1.0, "on": "reference"}, "reference": CLOTHES},
    "keep": {"regularizer": {"name": "rift", "q": "procrustes", "strength": {"keep": 0.9, "every_steps": 1}}},
    "ratio": {"regularizer": {"name": "rift", "alpha": "learn", "strength": {"ratio": 0.5, "steps": 8}}},
    "views, projection": {
        "regularizer": {"name": "ldifs", "layers": 2},
        "augment": {"flip": 0.5, "crop_min_area": 0.5, "views": 2},
        "optim": {"lr": 1e-3, "weight_decay": 0.0, "selective_projection": 1.0},
    },
}


@pytest.mark.parametrize("case", RESUMED)
def test_resume_is_bitwise_after_a_kill_in_the_middle_of_an_epoch(rift, tiny_recipe, write_recipe, monkeypatch, case):
    from riftcli.training import loop as train

    tiny_recipe["model"]["drop_path"] = 0.3
    tiny_recipe["augment"] = {"flip": 0.5, "crop_min_area": 0.5}
    tiny_recipe |= RESUMED[case]
    tiny_recipe["train"] |= {"epochs": 3, "save_every_steps": 3}
    recipe = write_recipe(tiny_recipe)
    assert rift("finetune", "--recipe", recipe, "--out", "whole")[0] == 0

    real = train.set_lr
    calls = {"n": 0}

    def dies(*arguments):
        calls["n"] += 1
        if calls["n"] == 9:  # within epoch 3, after the checkpoint of step 8
            raise KeyboardInterrupt
        real(*arguments)

    monkeypatch.setattr(train, "set_lr", dies)
    code, _, err = rift("finetune", "--recipe", recipe, "--out", "cut")
    assert code == 130, err
    assert json.loads(Path("cut/run.json").read_text())["status"] == "interrupted"
    monkeypatch.setattr(train, "set_lr", real)
    # go back to the checkpoint in the middle of epoch 2, as if the later one had never been written
    import shutil

    shutil.rmtree("cut/last/step-00000008")
    code, _, err = rift("finetune", "--resume", "cut")
    assert code == 0, err
    assert "resuming after step 6 of 12" in err
    assert_same_state(Path("whole"), Path("cut"))
    assert (Path("whole") / "model/model.safetensors").read_bytes() == (Path("cut") / "model/model.safetensors").read_bytes()
    keys = ["kind", "step", "epoch", "loss", "task_loss", "lr", "grad_norm", "acc", "cka"]
    assert rows(Path("whole"), "strength") == rows(Path("cut"), "strength")
    assert bool(rows(Path("whole"), "strength")) == (case in ("keep", "ratio"))
    pick = [[row.get(k) for k in keys] for row in rows(Path("whole"), "step") + rows(Path("whole"), "eval")]
    assert pick == [[row.get(k) for k in keys] for row in rows(Path("cut"), "step") + rows(Path("cut"), "eval")]
    one, two = (json.loads(Path(f"{r}/metrics.json").read_text()) for r in ("whole", "cut"))
    assert one["metrics"] == two["metrics"]
    assert one.get("strength") == two.get("strength")


def test_resume_refuses_changes_and_knows_when_it_is_done(rift, tiny_recipe, write_recipe):
    tiny_recipe["train"]["epochs"] = 1
    recipe = write_recipe(tiny_recipe)
    assert rift("finetune", "--recipe", recipe, "--out", "r")[0] == 0
    assert rift("finetune", "--resume", "r") == (0, "", "r: already finished\n")
    code, _, err = rift("finetune", "--resume", "r", "--set", "optim.lr=0.5")
    assert (code, err) == (
        2,
        "error: --resume r: the recipe differs from the run's: optim.lr: 0.001 -> 0.5; resume without changes, or start a "
        "new run\n",
    )
    code, _, err = rift("finetune", "--resume", "r", "--repeats", 2)
    assert code == 2
    assert err == "error: --resume does not go together with --repeats\n"
    assert rift("finetune", "--resume", "nowhere")[2] == ("error: --resume nowhere: not a run folder (no recipe.resolved.yaml)\n")


def test_sigterm_saves_and_exits_143(tiny_recipe, write_recipe, tmp_path, rift):
    tiny_recipe["train"]["epochs"] = 400
    recipe = write_recipe(tiny_recipe)
    process = subprocess.Popen(
        [sys.executable, "-m", "riftcli", "finetune", "--recipe", str(recipe), "--out", "r"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
    )
    metrics = tmp_path / "r" / "metrics.jsonl"
    deadline = time.time() + 120
    while not (metrics.is_file() and len(metrics.read_text().splitlines()) > 6):
        assert time.time() < deadline and process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143, err
    assert "error: stopped by a signal after step " in err
    assert json.loads((tmp_path / "r/run.json").read_text())["status"] == "interrupted"
    assert len(list((tmp_path / "r/last").glob("step-????????"))) >= 1


def test_divergence_stops_before_the_weights_are_touched(rift, tiny_recipe, write_recipe, monkeypatch, read_json):
    from riftcli.methods.objectives import softmax

    real = softmax.SoftmaxLoss.losses
    calls = {"n": 0}

    def poisoned(self, logits, targets):
        calls["n"] += 1
        loss = real(self, logits, targets)
        return loss * float("nan") if logits.requires_grad and calls["n"] > 300 else loss

    tiny_recipe["train"] |= {"head_init": "zeros", "epochs": 80}
    monkeypatch.setattr(softmax.SoftmaxLoss, "losses", poisoned)
    code, _, err = rift("finetune", "--recipe", write_recipe(tiny_recipe), "--out", "r")
    assert code == 7, err
    assert "error: step 301: loss or gradient is not finite (task nan, penalty " in err
    assert "; the weights were not touched, the batch is in r/diverged.json; try " in err
    report = read_json("r/diverged.json")
    assert report["step"] == 301
    assert len(report["ranks"][0]["ids"]) == 32
    assert all(torch.isfinite(t).all() for t in state(Path("r")).values() if t.is_floating_point())
    assert read_json("r/run.json")["status"] == "failed"


# ---- errors: the whole message and the exit code


@pytest.mark.parametrize(
    ("change", "arguments", "code", "message"),
    [
        ({}, ["--recipe", "nothing.yaml"], 2, "recipe nothing.yaml: no such file and no shipped recipe of that name; "
         "`rift recipes ls` lists the shipped ones"),
        ({}, ["--set", "optim.lrr=1"], 2, "--set optim.lrr=1: optim.lrr: unknown key (did you mean 'lr'?)\n"
         "  allowed here: name, lr, weight_decay, layer_decay, betas, momentum, selective_projection, clip_grad"),
        ({}, ["--set", "optim.lr=fast"], 2, "--set optim.lr=fast: optim.lr: expected a number, got 'fast' (text)"),
        ({}, ["--set", "train.micro_batch_size=5"], 2, "--set train.micro_batch_size=5: train.micro_batch_size: 5 does not "
         "divide train.batch_size 32"),
        ({}, ["--nproc-per-node", "3"], 2, "train.batch_size 32 is global and does not divide over 3 ranks; use --set "
         "train.batch_size=30 or another --nproc-per-node"),
        ({}, ["--nproc-per-node", "gpu"], 5, "--nproc-per-node gpu: torch sees no GPU here; give a number, or run "
         "`rift doctor`"),
        ({}, ["--device", "cuda:1"], 5, "--device cuda:1: no such GPU: cuda:1 was asked for and this machine has 0 visible to "
         "torch; use --device cpu, fewer processes, or run `rift doctor`"),
        ({}, ["--device", "quantum"], 5, "--device quantum: no such kind of device; use auto, cpu, cuda or cuda:N"),
        ({}, ["--set", "optim.name=adamww"], 2, "--set optim.name=adamww: optim.name: timm has no "
         "optimizer 'adamww' (did you mean 'adamw'?)"),
        ({}, ["--set", "train.batch_size=1000"], 3, "128 training samples do not fill one batch of train.batch_size 1000; use "
         "--set train.batch_size=128 or less"),
        ({"data": {"format": "image_folder", "root": "nowhere"}}, [], 3, "nowhere: no such data folder (looked in {cwd}); "
         "set root, e.g. --set data.root=/path/to/data"),
        ({"model": {"name": "vit_tiny_patch16_224", "weights": "none.safetensors"}}, [], 4,
         "model.weights none.safetensors: no such file or folder"),
        ({"model": {"name": "vit_tiny_patch16_224", "args": {"depht": 2}, "pretrained": False}, "regularizer": {"name": "none"}},
         [], 4, "model vit_tiny_patch16_224 cannot be built with these options: VisionTransformer.__init__() got an unexpected "
         "keyword argument 'depht'"),
    ],
)  # fmt: skip
def test_errors(rift, tiny_recipe, write_recipe, tmp_path, monkeypatch, change, arguments, code, message):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    recipe = [] if "--recipe" in arguments else ["--recipe", write_recipe({**tiny_recipe, **change})]
    got, out, err = rift("finetune", *recipe, "--out", "r", *arguments)
    shown = [line for line in err.splitlines() if not line.startswith(("data: ", "model: ", "batch: ", "head: "))]
    assert "\n".join(shown) == "error: " + message.replace("{cwd}", str(tmp_path))
    assert (got, out) == (code, "")
    assert not Path("r").exists(), "nothing is left behind"


def test_a_folder_that_is_not_empty(rift, tiny_recipe, write_recipe):
    tiny_recipe["train"]["epochs"] = 1
    recipe = write_recipe(tiny_recipe)
    Path("full").mkdir()
    Path("full/thesis.tex").write_text("precious")
    code, _, err = rift("finetune", "--recipe", recipe, "--out", "full")
    assert (code, err) == (
        2,
        "error: --out full: folder is not empty and holds no run; choose another --out\n",
    )
    code, _, err = rift("finetune", "--recipe", recipe, "--out", "full", "--overwrite")
    assert (code, err) == (2, "error: --out full: --overwrite only replaces a run folder, and this one has no run.json\n")
    assert Path("full/thesis.tex").read_text() == "precious"
    assert rift("finetune", "--recipe", recipe, "--out", "r")[0] == 0
    before = files(Path("r"))
    assert rift("finetune", "--recipe", recipe, "--out", "r", "--overwrite", "--set", "data.train.limit=9")[0] == 3
    assert files(Path("r")) == before, "the old run stays until the new one can start"
    assert rift("finetune", "--recipe", recipe, "--out", "r", "--overwrite")[0] == 0


def test_an_unreadable_image_is_exit_3_with_its_path(rift, tiny_recipe, write_recipe, tmp_path):
    for split in ("train", "test"):
        for label in ("a", "b"):
            folder = tmp_path / "pics" / split / label
            folder.mkdir(parents=True)
            for i in range(8):
                Image.new("RGB", (16, 16), (i * 10,) * 3).save(folder / f"{i}.png")
    (tmp_path / "pics/train/b/3.png").write_bytes(b"oops")
    tiny_recipe |= {"data": {"format": "image_folder", "root": str(tmp_path / "pics")}}
    tiny_recipe["train"] |= {"batch_size": 8, "workers": 1}
    code, _, err = rift("finetune", "--recipe", write_recipe(tiny_recipe), "--out", "r")
    bad = tmp_path / "pics/train/b/3.png"
    assert code == 3
    assert err.splitlines()[-1] == (
        f"error: {bad}: unreadable image (cannot identify image file '{bad}'); replace it or take it out of the split "
        "[split 'train', sample 'train/b/3.png']"
    )


def test_eval_errors(rift, tiny_recipe, write_recipe, tmp_path):
    assert rift("eval") == (
        2,
        "",
        "error: no finished run under runs/; pass --run DIR, or start one with `rift finetune --recipe NAME`\n",
    )
    tiny_recipe["train"]["epochs"] = 1
    assert rift("finetune", "--recipe", write_recipe(tiny_recipe), "--out", "r")[0] == 0
    assert rift("eval", "--run", "r", "--metrics", "acc,ckaa")[2] == (
        "error: --metrics ckaa: unknown metric (did you mean 'cka'?); one of: acc, top5, bacc, f1, worst_group, auroc, map, "
        "kappa, "
        "ece, ece_adaptive, brier, nll, knn, cka, cka_debiased, cka_rbf, rsa, rsa_centred, rsa_spearman, rsa_euclid, "
        "procrustes, cca, svcca, mutual_knn, centre_distance, overlap, effective_rank\n"
    )
    assert rift("eval", "--run", "r", "--set", "optim.lr=1")[2] == (
        "error: --set optim.lr=1: evaluation can change data.*, input.*, eval.*, model.weights and train.workers, not the run\n"
    )
    code, _, err = rift("eval", "--run", "r", "--set", "data.format=demo_fashion", "--set", "data.test=test")
    assert code == 3
    assert err.startswith("error: split 'test': classes differ from those the model was trained on: missing ['0', '1', '2'")
    code, _, err = rift("eval", "--run", "r", "--split", "tset")
    assert (code, err) == (3, "error: digits: no split 'tset' (did you mean 'test'?); it has: train, test\n")


def test_a_model_folder_alone_can_be_evaluated(rift, tiny_recipe, write_recipe, tmp_path):
    tiny_recipe["train"]["epochs"] = 1
    assert rift("finetune", "--recipe", write_recipe(tiny_recipe), "--out", "r")[0] == 0
    (tmp_path / "r/model").rename(tmp_path / "alone")
    code, _, err = rift("eval", "--run", "alone", "--metrics", "acc")
    assert code == 2
    assert "say what to evaluate on, e.g. --set data.format=image_folder" in err
    code, out, err = rift("eval", "--run", "alone", "--metrics", "acc", "--set", "data.format=digits", "--json")
    assert code == 0, err
    assert valid(json.loads(out))["data"]["n"] == 500


def test_bugs_are_one_line_with_the_traceback_in_the_log(rift, tiny_recipe, write_recipe, monkeypatch):
    from riftcli.training import loop as train

    def broken(*arguments):
        raise ZeroDivisionError("surprise")

    monkeypatch.setattr(train, "set_lr", broken)
    code, _, err = rift("finetune", "--recipe", write_recipe(tiny_recipe), "--out", "r")
    assert code == 1
    assert err.splitlines()[-1] == "error: unexpected ZeroDivisionError: surprise; a bug: --debug shows the traceback"
    assert "Traceback" not in err
    assert "ZeroDivisionError: surprise" in Path("r/train.log").read_text()
    monkeypatch.setenv("RIFT_DEBUG", "")
    assert "Traceback" in rift("finetune", "--recipe", write_recipe(tiny_recipe), "--out", "s", "--debug")[2]


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), 6, "out of memory: CUDA out of memory. Tried "
         "to allocate 2 GiB; use a smaller train.micro_batch_size (the result stays the same) or train.precision bf16"),
        (OSError(28, "No space left on device", "r/metrics.jsonl"), 8, "r/metrics.jsonl: No space left on device; free some "
         "space"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
    ids=["memory", "disk", "ctrl-c"],
)  # fmt: skip
def test_other_endings(rift, tiny_recipe, write_recipe, monkeypatch, error, code, message):
    from riftcli.training import loop as train

    def fail(*arguments):
        raise error

    monkeypatch.setattr(train, "set_lr", fail)
    got, _, err = rift("finetune", "--recipe", write_recipe(tiny_recipe), "--out", "r")
    assert (got, err.splitlines()[-1]) == (code, f"error: {message}")
    assert json.loads(Path("r/run.json").read_text())["status"] in ("failed", "interrupted")


# ---- the rest of the commands


def test_dry_run_writes_nothing(rift, tiny_recipe, write_recipe, tmp_path):
    recipe = write_recipe(tiny_recipe)
    code, out, err = rift("finetune", "--recipe", recipe, "--dry-run", "--set", "optim.lr=2e-3")
    assert code == 0, err
    lines = {line.split()[0]: line.split()[1:] for line in out.splitlines()}
    assert lines["optim.lr"] == ["--set", "0.002"]
    assert lines["train.epochs"] == ["recipe", "2"]
    assert lines["schedule.name"] == ["default", "cosine"]
    assert "one batch: task loss " in out
    assert "nothing was written" in out
    assert {p.name for p in tmp_path.iterdir()} == {"tiny.yaml"}


def test_recipes_commands(rift, tmp_path):
    code, out, _ = rift("recipes", "ls")
    assert code == 0
    assert any(line.startswith("demo_rift ") for line in out.splitlines())
    shown = rift("recipes", "show", "demo_rift.yaml")[1]
    assert rift("recipes", "cp", "demo_rift", "mine.yaml") == (0, "", "copied to mine.yaml\n")
    assert (tmp_path / "mine.yaml").read_text() == shown
    assert rift("recipes", "cp", "demo_rift", "mine.yaml")[2] == ("error: mine.yaml: exists; choose another name or remove it\n")
    assert rift("recipes", "validate", "mine.yaml") == (0, "", "mine: ok\n")
    (tmp_path / "bad.yaml").write_text("model: {name: x}\ndata: {format: digits}\noptim: {lrr: 1}\n")
    code, _, err = rift("recipes", "validate", "bad.yaml")
    assert code == 2
    assert err.startswith("error: recipe bad.yaml:3: optim.lrr: unknown key (did you mean 'lr'?)\n  allowed here: ")
    assert json.loads(rift("recipes", "schema")[1])["title"] == "riftcli recipe"


def test_doctor_and_version(rift):
    code, out, _ = rift("doctor")
    assert code == 0
    assert out.endswith("all well\n")
    assert rift("--version")[1] == f"riftcli {riftcli.__version__}\n"


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["finetune", "--help"], ["recipes", "ls"], ["recipes", "validate", "demo_rift"], ["recipes", "schema"]],
)
def test_torch_is_not_imported_for_help_and_recipes(arguments):
    script = (
        "import sys\nfrom riftcli import cli\n"
        f"code = cli.run({arguments!r})\n"
        "assert code == 0, code\n"
        "heavy = [m for m in ('torch', 'timm', 'torchvision', 'sklearn', 'matplotlib') if m in sys.modules]\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=dict(os.environ))
    assert done.returncode == 0, done.stderr
