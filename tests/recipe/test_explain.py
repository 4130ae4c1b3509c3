"""`rift recipes explain`, and what a shell completes."""

from __future__ import annotations

import sys

import pytest

from riftcli.commands.completion import complete_key, complete_recipe, complete_run
from riftcli.errors import UsageError
from riftcli.recipe.explain import all_keys, explain, meanings


def test_a_key_says_what_it_does_its_kind_default_and_range(rift):
    code, out, err = rift("recipes", "explain", "optim.lr")
    assert (code, out) == (0, "optim.lr: number, above 0, default 0.0001\n  peak learning rate\n")
    code, out, err = rift("recipes", "explain", "train.precision")
    assert out == "train.precision: one of: auto, fp32, bf16, default auto\n  auto: bf16 autocast on GPUs that have it\n"
    code, out, err = rift("recipes", "explain", "regularizer.strength")
    assert "regularizer.strength (rift): number, default 1.0\n" in out
    assert "regularizer.strength (rsc): number, default 1.0\n" in out
    code, out, err = rift("recipes", "explain", "data.format")
    assert out.startswith("data.format: text, one of: digits, demo_fashion, ")
    assert rift("recipes", "explain", "optim.lr=")[1] == "optim.lr: number, above 0, default 0.0001\n  peak learning rate\n"
    code, out, err = rift("recipes", "explain", "optim.lrr")
    assert (code, err) == (2, "error: optim.lrr: no such key (did you mean 'optim.lr'?); `rift recipes schema` has them all\n")


def test_every_key_of_every_component_is_explained():
    missing = [f"{m.key} ({m.owner})" for m in meanings() if not m.what]
    assert missing == []
    assert all(m.kind for m in meanings())
    defaults = {(m.key, m.owner): m.default for m in meanings()}
    assert defaults["data.root", "isic2018"] is None
    assert defaults["train.epochs", ""] == "50"
    assert defaults["model.weights", ""] == "null"
    with pytest.raises(UsageError):
        explain("nothing.like.it")


def test_a_shell_completes_recipes_runs_and_keys(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo_mine.yaml").touch()
    assert {"demo_mine.yaml", "demo_rift", "demo_lora_rift"} <= set(complete_recipe("demo_"))
    assert complete_recipe(f"{tmp_path}/demo_m") == [f"{tmp_path}/demo_mine.yaml"]
    assert complete_recipe("[") == []
    for name in ("a", "series/s0"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "run.json").write_text("{}")
        (tmp_path / "runs" / name / "recipe.resolved.yaml").write_text("{}")
    (tmp_path / "runs" / "a" / "align" / "lambda").mkdir(parents=True)
    (tmp_path / "runs" / "a" / "align" / "lambda" / "run.json").write_text("{}")  # of a map
    assert complete_run("runs/") == ["runs/a", "runs/series/s0"]
    assert complete_run("runs/s") == ["runs/series/s0"]
    assert complete_key("optim.l") == ["optim.layer_decay=", "optim.lr="]
    assert complete_key("optim.lr=") == []
    assert "regularizer.strength" in all_keys()


def test_completion_does_not_wait_for_torch(tmp_path):
    import subprocess

    program = (
        "import sys; from riftcli.commands.completion import complete_key, complete_recipe, complete_run\n"
        "complete_key('o'), complete_recipe('d'), complete_run('r')\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout == "False\n", done.stderr
