"""Run folders of an earlier layout of the code stay readable, and resume bit for bit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from riftcli import recipe as recipes
from riftcli.errors import UsageError
from riftcli.recipe import OLDER
from riftcli.training.optim import build_optimizer

METHODS = ["full_rift", "vpt_rsc"]


@pytest.fixture
def old(old_runs, tmp_path, monkeypatch):
    """A writable copy; its recipes name their backbone relative to it."""
    shutil.copytree(old_runs, tmp_path / "old")
    monkeypatch.setenv("COLUMNS", "200")

    def run(rift, *arguments):
        monkeypatch.chdir(tmp_path / "old")
        return rift(*arguments)

    return run


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    files = sorted(folder.glob("*.safetensors"))
    assert files, folder
    return {f"{file.stem}/{name}": value for file in files for name, value in load_file(file).items()}


def plain_optimizer(*own, **named):
    """Not fused, as those of the fixture on a CPU."""
    return build_optimizer(*own, **named | {"fused": False})


@pytest.mark.parametrize("method", METHODS)
def test_a_run_that_an_earlier_version_began_resumes_bitwise(method, old, rift, monkeypatch):
    """The fixture holds a checkpoint of step 6 and the state that the same code reached at step 12 without a pause."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the fixture was made
    try:
        code, _, err = old(rift, "finetune", "--resume", f"{method}/interrupted", "--device", "cpu")
        assert code == 0, err
        assert "resuming after step 6 of 12" in err
        monkeypatch.setattr("riftcli.training.setup.build_optimizer", plain_optimizer)
        known = recipes.load(f"{method}.yaml").sources  # not every regularizer and data source has every key
        then = [f"{key}={value}" for key, value in OLDER.items() if key in known]
        settings = [word for setting in then for word in ("--set", setting)]
        assert old(rift, "finetune", "--recipe", f"{method}.yaml", "--out", "again", "--device", "cpu", *settings)[0] == 0
    finally:
        torch.set_num_threads(threads)
    then, now = tensors(Path(method, "final_state")), tensors(Path(method, "interrupted/last/step-00000012"))
    assert then.keys() == now.keys()
    for name, value in then.items():
        torch.testing.assert_close(now[name], value, rtol=1e-3, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}")
    # another processor or torch may round in another way; where the whole run comes out as it did, resuming must too
    rows = [Path(run, "metrics.jsonl").read_text().splitlines() for run in (f"{method}/finished", "again")]
    losses = [[json.loads(row)["loss"] for row in lines if json.loads(row)["kind"] == "step"] for lines in rows]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4), "as earlier versions did, not as this one does by itself"
    if losses[0] == losses[1]:
        assert all(torch.equal(now[name], value) for name, value in then.items())
        kept = Path(method, "interrupted/model/model.safetensors").read_bytes()
        assert kept == Path(method, "finished/model/model.safetensors").read_bytes()


def test_what_earlier_versions_did_without_a_word_goes_on(old_runs, tmp_path):
    path = old_runs / "full_rift/finished/recipe.resolved.yaml"
    assert recipes.parse(path.read_text(), path.name, []).input.resize == "auto"
    assert recipes.stored(path).input.resize == "pil" and recipes.stored(path).schedule.min_warmup_steps == 0
    assert recipes.stored(path).train.compile is False and recipes.stored(path).train.diagnose_every_steps == 1
    assert recipes.stored(path, overrides=["input.resize=tensor"]).input.resize == "tensor"
    table = tmp_path / "recipe.resolved.yaml"
    old = {**recipes.load("demo_rift").resolved, "data": {"format": "image_folder", "root": "images"}}
    table.write_text(recipes.dump(old))
    assert recipes.stored(table).data.source.follow_links is True
    table.write_text(recipes.dump(recipes.load("demo_rift", ["data.format=image_folder", "data.root=x"]).resolved))
    now = recipes.stored(table)
    assert (now.input.resize, now.train.compile, now.data.source.follow_links) == ("auto", "auto", False)
    text = recipes.dump({**now.resolved, "eval": {**now.resolved["eval"], "best": "gone"}})
    table.write_text(text)
    assert recipes.stored(table, overrides=["eval.best=acc"]).eval.best == "acc", "what this version refuses can be mended"
    with pytest.raises(UsageError, match="^recipe recipe.resolved.yaml:[0-9]+: eval.best: "):
        recipes.stored(table)


@pytest.mark.parametrize("method", METHODS)
def test_a_finished_run_of_an_earlier_version_is_evaluated_and_tabled(method, old, rift):
    run = Path(method, "finished")
    code, out, err = old(rift, "eval", "--run", run, "--metrics", "acc,cka", "--json")
    assert code == 0, err
    then, now = json.loads((run / "metrics.json").read_text()), json.loads(out)
    for name in ("acc", "cka"):
        assert now["metrics"][name]["value"] == pytest.approx(then["metrics"][name]["value"], abs=1e-4)
    assert now["model"]["method"] == then["model"]["method"]
    assert now["data"] == then["data"]
    code, out, err = old(rift, "compare", run, "--json")
    assert code == 0, err
    assert {row["column"] for row in json.loads(out)["rows"]} >= {"acc", "cka"}
    assert old(rift, "report", run)[0] == 0
