"""`--from RUN`: a new run from another run's weights, kept against the pretrained model all the same."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

import riftcli


def first_rows(run: str) -> list[dict]:
    return [json.loads(line) for line in Path(run, "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("adapter", ["full", "lora", "linear"])
def test_it_begins_where_the_other_ended(rift, tiny_recipe, write_recipe, read_json, adapter):
    tiny_recipe["optim"]["lr"] = 1e-4
    recipe = write_recipe(tiny_recipe)
    assert rift("finetune", "--recipe", recipe, "--out", "first")[0] == 0
    changes = ["--set", f"adapter.name={adapter}", "--set", "train.epochs=1"]
    changes += ["--set", "regularizer.name=none"] if adapter == "linear" else []
    code, _, err = rift("finetune", "--recipe", recipe, "--from", "first", "--out", "second", *changes)
    assert code == 0, err
    assert "start: weights and head of first" in err
    start = first_rows("second")[0]
    ended = read_json("first/metrics.json")["validation"]
    assert start["kind"] == "eval" and start["epoch"] == 0
    assert start["acc"] == pytest.approx(ended["acc"])
    assert start["cka"] == pytest.approx(ended["cka"], abs=1e-5), "against the pretrained model, not against the first run"
    assert start["cka"] < 0.9999
    assert read_json("second/run.json")["status"] == "completed"
    if adapter == "linear":
        before, after = riftcli.load("first").state_dict(), riftcli.load("second").state_dict()
        moved = [name for name in before if not torch.equal(before[name], after[name])]
        assert moved and all(name.startswith("head.") for name in moved)


def test_it_resumes_without_the_first_run(rift, tiny_recipe, write_recipe, monkeypatch):
    recipe = write_recipe(tiny_recipe)
    assert rift("finetune", "--recipe", recipe, "--out", "first")[0] == 0
    assert rift("finetune", "--recipe", recipe, "--from", "first", "--out", "whole")[0] == 0
    from riftcli.training import loop

    original = loop.save

    def once(state):
        original(state)
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "save", once)
    assert rift("finetune", "--recipe", recipe, "--from", "first", "--out", "stopped")[0] == 130
    monkeypatch.setattr(loop, "save", original)
    shutil.rmtree("first")
    code, _, err = rift("finetune", "--resume", "stopped")
    assert code == 0, err
    one, other = riftcli.load("whole").state_dict(), riftcli.load("stopped").state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one), "bitwise"


def test_what_cannot_be_begun_with_is_one_line(rift, tiny_recipe, write_recipe, tmp_path):
    recipe = write_recipe(tiny_recipe)
    code, _, err = rift("finetune", "--recipe", recipe, "--from", "nowhere", "--out", "run")
    assert (code, err.splitlines()[-1]) == (2, "error: train.start_from nowhere: no such folder; name a finished run")
    assert rift("finetune", "--recipe", recipe, "--set", "adapter.name=vpt", "--set", "train.epochs=1", "--out", "vpt")[0] == 0
    code, _, err = rift("finetune", "--recipe", recipe, "--from", "vpt", "--out", "run")
    assert (code, "train.start_from vpt: its adapter is no part of the backbone's own layers" in err) == (2, True)
    assert rift("finetune", "--recipe", recipe, "--set", "train.epochs=1", "--out", "digits")[0] == 0
    clothes = ["--set", "data={format: demo_fashion, train: {from: test, limit: 160}, val: {fraction: 0.2}, test: null}"]
    code, _, err = rift("finetune", "--recipe", recipe, *clothes, "--from", "digits", "--out", "run")
    assert code == 2
    assert "train.start_from digits: it has 10 classes (0, 1, 2, ...), and this data has 10 (" in err
    assert err.strip().endswith("begin with its backbone alone: model.name local-dir:digits/model")
    args = "{patch_size: 4, embed_dim: 16, depth: 1, num_heads: 2}"
    other = f"model={{name: vit_tiny_patch16_224, image_size: 16, pretrained: false, args: {args}}}"
    plain = ["--set", "regularizer.name=none", "--set", "eval.metrics=[acc]"]
    code, _, err = rift("finetune", "--recipe", recipe, "--set", other, *plain, "--from", "digits", "--out", "run")
    assert (code, "train.start_from digits: its weights do not fit this model: " in err) == (4, True), err
    code, _, err = rift("finetune", "--resume", "digits", "--from", "vpt")
    assert (code, err) == (2, "error: --resume does not go together with --from\n")
    assert not (tmp_path / "run").exists()


def test_what_lora_learned_on_another_run_names_that_run_as_its_base(rift, tiny_recipe, write_recipe, read_json):
    recipe = write_recipe(tiny_recipe)
    assert rift("finetune", "--recipe", recipe, "--set", "train.epochs=1", "--out", "first")[0] == 0
    lora = ["--set", "adapter.name=lora", "--set", "train.epochs=1"]
    assert rift("finetune", "--recipe", recipe, *lora, "--from", "first", "--out", "second")[0] == 0
    assert read_json("second/adapter/adapter_config.json")["base_model_name_or_path"] == "local-dir:first/model"


def test_wise_mixes_with_the_pretrained_weights_and_not_with_the_first_run(rift, tiny_recipe, write_recipe, read_json):
    recipe = write_recipe(tiny_recipe)
    assert rift("finetune", "--recipe", recipe, "--out", "first")[0] == 0
    assert rift("finetune", "--recipe", recipe, "--from", "first", "--out", "second")[0] == 0
    shutil.rmtree("first")
    code, _, err = rift("wise", "second", "--alphas", "0:1:0.5")
    assert code == 0, err
    assert read_json("second/wise/metrics.json")["wise"]["validation"][0]["cka"] == pytest.approx(1.0, abs=1e-5)
