"""The Python API as a notebook uses it: one process that goes on afterwards."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import riftcli
from riftcli.errors import DataError, UsageError

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def run(tiny_recipe_of, tmp_path_factory) -> riftcli.Run:
    """One run through the API, with what it must not change compared before and after."""
    folder = tmp_path_factory.mktemp("api")
    torch.manual_seed(11)
    threads = torch.get_num_threads()
    torch.set_num_threads(3 - threads)  # not what it would be by itself
    before = state()
    try:
        made = riftcli.finetune(tiny_recipe_of(), out=folder / "run", train={"epochs": 1}, eval__batch_size=8, quiet=True)
        assert state() == before
    finally:
        torch.set_num_threads(threads)
    return made


def state() -> tuple:
    import os
    import random

    return (
        torch.get_rng_state().tolist(),
        torch.get_num_threads(),
        torch.get_default_dtype(),
        torch.is_grad_enabled(),
        np.random.get_state()[1].tolist(),
        random.getstate(),
        dict(os.environ),
        [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)],
    )


def test_a_run_has_its_numbers(run):
    assert set(run.metrics) == {"acc", "cka"}
    assert run.report == json.loads((run.path / "metrics.json").read_text())
    assert [row["kind"] for row in run.log][:2] == ["eval", "step"]
    assert (run.path / "report.html").is_file()
    assert repr(run).startswith(f"Run('{run.path}': acc 0.")
    resolved = (run.path / "recipe.resolved.yaml").read_text()
    assert "epochs: 1" in resolved and "batch_size: 8" in resolved


@pytest.mark.page
def test_progress_goes_to_the_cell_and_quiet_says_nothing(tiny_recipe_of, tmp_path, capfd):
    riftcli.finetune(tiny_recipe_of(), out=tmp_path / "loud", train={"epochs": 1})
    out, err = capfd.readouterr()
    assert "epoch 1/1: validation acc" in out
    assert err == ""
    riftcli.finetune(tiny_recipe_of(), out=tmp_path / "loud", overwrite=True, train={"epochs": 1}, quiet=True)
    assert capfd.readouterr() == ("", "")


def test_model_transform_and_predict_agree(run, tmp_path):
    generator = np.random.default_rng(0)
    images = [Image.fromarray(generator.integers(0, 255, (20, 20), dtype=np.uint8)) for _ in range(3)]
    for i, image in enumerate(images):
        image.save(tmp_path / f"{i}.png")
    batch = torch.stack([run.transform()(image) for image in images])
    with torch.inference_mode():
        expected = run.model()(batch).double().softmax(1)
    answers = run.predict(images, batch_size=2)
    for i, answer in enumerate(answers):
        assert answer["image"] == i
        assert list(answer["probabilities"].values()) == pytest.approx(expected[i].tolist(), abs=1e-6)
        assert answer["class"] == list(answer["probabilities"])[int(expected[i].argmax())]
    for same in (batch, [*batch], [tmp_path / f"{i}.png" for i in range(3)], tmp_path, str(tmp_path)):
        got = run.predict(same)
        assert [a["class"] for a in got] == [a["class"] for a in answers]
        assert got[0]["probabilities"] == pytest.approx(answers[0]["probabilities"], abs=1e-6)
    assert run.predict(tmp_path / "0.png")[0]["image"] == str(tmp_path / "0.png")
    assert torch.equal(riftcli.load(run)(batch), riftcli.load(str(run.path))(batch))


def test_labels_of_a_multi_label_model(run, tmp_path):
    shutil.copytree(run.path / "model", tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    config["rift"]["task"] = "multilabel"
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    (tmp_path / "model" / "manifest.json").unlink()  # the change is meant
    image = Image.new("RGB", (16, 16), "white")
    with torch.inference_mode():
        expected = run.model()(run.transform()(image)[None])[0].double().sigmoid()
    (answer,) = riftcli.Run(tmp_path / "model").predict(image)
    assert list(answer["probabilities"].values()) == pytest.approx(expected.tolist(), abs=1e-6)
    assert answer["class"] == [name for name, p in answer["probabilities"].items() if p > 0.5]


def test_a_recipe_object_on_two_processes_is_the_run_on_one(run, tiny_recipe_of, tmp_path):
    from riftcli import recipe

    plain = tiny_recipe_of()
    plain["train"]["epochs"] = 1
    plain["eval"]["batch_size"] = 8
    checked = recipe.parse(recipe.dump(plain), "mine.yaml", [])
    before = state()
    two = riftcli.finetune(checked, out=tmp_path / "two", nproc_per_node=2, device="cpu", quiet=True)
    assert state() == before
    assert "RIFT_DIE_WITH" not in os.environ, "a command that a notebook starts later would end at once"
    assert two.report["env"]["world_size"] == 2
    assert two.metrics["acc"] == pytest.approx(run.metrics["acc"], abs=0.02)
    assert two.metrics["cka"] == pytest.approx(run.metrics["cka"], abs=1e-3)


def test_evaluate_and_compare(run):
    report = riftcli.evaluate(run, metrics=["acc", "ece"], split="val", quiet=True)
    assert set(report["metrics"]) == {"acc", "ece"} and report["data"]["split"] == "val"
    assert json.loads((run.path / "eval" / "digits-val" / "metrics.json").read_text())["metrics"] == report["metrics"]
    assert (run.path / "eval" / "digits-val" / "reliability.png").is_file()
    cells = {row["column"]: row["mean"] for row in riftcli.compare([run])}
    assert cells["acc"] == pytest.approx(run.metrics["acc"])
    assert {row["column"] for row in riftcli.compare([run], metrics="acc")} == {"acc"}


def test_resume_and_series(tiny_recipe_of, tmp_path, capfd):
    series = riftcli.finetune(tiny_recipe_of(), out=tmp_path / "x", repeats=2, train={"epochs": 1}, quiet=True)
    assert series.report["seeds"] == [0, 1]
    assert riftcli.finetune(resume=tmp_path / "x" / "s1").metrics == riftcli.Run(tmp_path / "x" / "s1").metrics
    assert "already finished" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda run: riftcli.Run("nowhere"), "nowhere: no such folder; riftcli.finetune() makes one, `rift finetune` too"),
        (lambda run: riftcli.finetune(), "finetune: give a recipe (`rift recipes ls` lists the shipped ones) or resume=FOLDER"),
        (lambda run: riftcli.compare(run), "compare: expected a list of runs"),
        (lambda run: riftcli.finetune(resume=run.path, out="x"), "finetune: resume does not go together with out"),
        (lambda run: riftcli.finetune("demo_rift", folds=2, repeats=2), "finetune: folds does not go together with repeats"),
        (lambda run: riftcli.finetune("demo_rift", folds=-1), "--folds -1: a cross-validation has at least 2 folds"),
        (
            lambda run: riftcli.finetune("demo_rift", data={"format": "image_folder", "root": "none/\U0001f600"}),
            "none/\U0001f600: no such data folder (looked in {cwd}); set root, e.g. --set data.root=/path/to/data",
        ),
        (lambda run: run.predict([]), "predict: expected paths, PIL images or tensors, got list; give at least one"),
        (lambda run: run.predict([3]), "predict: image 0 is int; expected a path, a PIL image or a tensor (3, 16, 16)"),
        (
            lambda run: run.predict(torch.zeros(3, 9, 9)),
            "predict: image 0 is a tensor of shape (3, 9, 9); expected a path, a PIL image or a tensor (3, 16, 16)",
        ),
    ],
)
def test_wrong_calls_are_one_line(run, call, message):
    before = state()
    with pytest.raises((UsageError, DataError)) as caught:
        call(run)
    assert str(caught.value) == message.format(cwd=Path.cwd())
    assert state() == before


def test_an_unfinished_run_can_be_looked_at(tmp_path):
    (tmp_path / "begun").mkdir()
    assert repr(riftcli.Run(tmp_path / "begun")) == f"Run('{tmp_path}/begun': not finished)"


def test_an_error_in_the_middle_leaves_the_process_as_it_was(tiny_recipe_of, tmp_path, monkeypatch):
    from riftcli.training import loop

    def fails(*arguments):
        raise MemoryError("no more")

    monkeypatch.setattr(loop, "set_lr", fails)
    before = state()
    with pytest.raises(MemoryError):
        riftcli.finetune(tiny_recipe_of(), out=tmp_path / "r", quiet=True)
    assert state() == before


def test_importing_is_light():
    program = "import sys, riftcli; assert 'torch' not in sys.modules; assert callable(riftcli.finetune)"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_the_documented_cells_run_in_one_process(tmp_path):
    cells = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "api.md").read_text(), re.S)
    assert len(cells) >= 6
    done = subprocess.run([sys.executable, "-c", "\n".join(cells)], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "optim.lrr: unknown key (did you mean 'lr'?)" in done.stdout
