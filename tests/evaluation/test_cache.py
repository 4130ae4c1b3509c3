"""Features are kept between commands: found again, kept small, listed, deleted; and never a reason to fail."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from riftcli.data.split import Split
from riftcli.data.transforms import Preprocessing
from riftcli.evaluation import cache_folder
from riftcli.evaluation.feature_cache import FeatureCache, weights_digest
from riftcli.evaluation.features import FeatureTable
from riftcli.models.backbone import Backbone
from riftcli.models.classifier import Classifier
from riftcli.training import network

TABLE = FeatureTable(torch.ones(4, 2), torch.ones(4, 3))


@pytest.fixture
def folder() -> Path:
    return Path(os.environ["RIFTCLI_CACHE"])


def test_seeds_and_commands_share_features(rift, tiny_recipe, write_recipe, folder, tmp_path):
    """What was computed for one run is read by the next one, which comes out the same, and by an evaluation."""
    recipe = write_recipe(tiny_recipe)
    assert rift("finetune", "--recipe", recipe, "--out", "a")[0] == 0
    tables = sorted(folder.glob("*.safetensors"))
    assert len(tables) == 3, "training, validation and test images through the pretrained model"
    assert rift("finetune", "--recipe", recipe, "--out", "b")[0] == 0
    assert rift("finetune", "--recipe", recipe, "--out", "d", "--set", "optim.lr=2e-3")[0] == 0
    assert sorted(folder.glob("*.safetensors")) == tables
    assert rift("finetune", "--recipe", recipe, "--out", "c", "--set", "eval.cache=null")[0] == 0
    a, b, c = ((tmp_path / run / "model/model.safetensors").read_bytes() for run in "abc")
    assert a == b == c, "a run that fills the cache, one that reads it and one without are the same"
    assert rift("eval", "--run", "a", "--metrics", "acc,cka")[0] == 0
    assert len(list(folder.glob("*.safetensors"))) == 4, "only the finetuned model's are new"


def test_listed_and_deleted(rift, folder):
    assert rift("cache", "ls")[2].startswith("0 tables") or "0 tables" in rift("cache", "ls")[1]
    cache = FeatureCache(folder, 10**9)
    for name in ("a", "b"):
        cache.write(folder / f"{name}.safetensors", TABLE)
    code, out, _ = rift("cache", "ls", "--json")
    assert code == 0 and [Path(entry["path"]).stem for entry in json.loads(out)] == ["a", "b"]
    code, out, err = rift("cache", "ls")
    assert code == 0 and f"2 tables of features in {folder}, 0.00 of 10 GB" in " ".join((out + err).split())
    (folder / "notes.txt").write_text("mine")
    code, _, err = rift("cache", "clear")
    assert code == 0 and err == f"freed: 0 MB (2 tables in {folder})\n"
    assert [path.name for path in folder.iterdir()] == ["notes.txt"], "what is not ours stays"


def test_what_was_not_used_for_longest_goes_first(folder):
    size = 0
    for number, name in enumerate("abcd"):
        path = folder / f"{name}.safetensors"
        FeatureCache(folder, 10**9).write(path, TABLE)
        os.utime(path, (number, number))
        size = path.stat().st_size
    cache = FeatureCache(folder, 3 * size)
    assert cache.read(folder / "a.safetensors", 4) is not None  # used just now
    cache.write(folder / "e.safetensors", TABLE)
    assert sorted(path.stem for path in folder.glob("*.safetensors")) == ["a", "d", "e"]
    assert sorted(path.stem for path in folder.glob("*.sha256")) == ["a", "d", "e"]


def test_a_table_that_would_push_out_all_others_is_not_kept(folder):
    size = TABLE.features.nbytes + TABLE.logits.nbytes
    FeatureCache(folder, 4 * size - 1).write(folder / "a.safetensors", TABLE)
    assert not list(folder.iterdir())
    FeatureCache(folder).write(folder / "a.safetensors", TABLE)  # a folder of one's own takes all
    assert (folder / "a.safetensors").is_file()


def test_a_cache_that_cannot_be_written_is_no_failure(rift, tiny_recipe, write_recipe, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("RIFTCLI_CACHE", str(tmp_path / "file"))
    code, _, err = rift("finetune", "--recipe", write_recipe(tiny_recipe), "--out", "r")
    assert code == 0 and err.count("note: features are not kept for the next command: ") == 1
    tiny_recipe["eval"]["cache"] = str(tmp_path / "file")
    code, _, err = rift("finetune", "--recipe", write_recipe(tiny_recipe), "--out", "s")
    assert code == 8 and err.splitlines()[-1].startswith(f"error: {tmp_path}/file: cannot be written")


def test_without_a_home_nothing_is_kept(monkeypatch):
    for name in ("RIFTCLI_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)

    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(cache_folder.Path, "home", homeless)
    assert cache_folder.user_folder() is None and FeatureCache.of_setting("auto") is None
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache_folder.user_folder() == Path("/somewhere/riftcli")


def test_weights_that_trained_or_were_exchanged_are_noticed(folder):
    cache, model = FeatureCache(folder), torch.nn.Linear(3, 2)
    seen = [cache._weights(model)]
    with torch.no_grad():
        model.weight.add_(1)
    seen.append(cache._weights(model))
    model(torch.ones(1, 3)).sum().backward()
    torch.optim.SGD(model.parameters(), lr=1.0).step()
    seen.append(cache._weights(model))
    model.bias = torch.nn.Parameter(torch.zeros(2))
    seen.append(cache._weights(model))
    assert len(set(seen)) == 4 and seen[-1] == weights_digest(model)
    assert cache._weights(torch.nn.Linear(3, 2)) not in seen


def test_heads_of_another_number_are_another_network(folder, tiny_weights):
    """The number of heads is in no weight and in no module's description."""
    models = [Classifier(Backbone(f"local-dir:{tiny_weights}", args={"num_heads": heads}).build()) for heads in (1, 2)]
    assert weights_digest(models[0]) == weights_digest(models[1])
    split = Split("test", ["a"], np.zeros(1, dtype=np.int64), ["a"], read=lambda i: Image.new("RGB", (4, 4)))
    cache, transform = FeatureCache(folder), Preprocessing((3, 16, 16), "bicubic", (0.5,) * 3, (0.25,) * 3, 0.875)
    assert len({cache.path(model, "token", split, transform, {}) for model in models}) == 2


def test_a_folder_that_cannot_be_read_is_said_in_one_line(rift, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("RIFTCLI_CACHE", str(tmp_path / "file"))
    code, _, err = rift("cache", "ls")
    assert code == 8 and err == f"error: {tmp_path}/file: cannot be read (Not a directory); RIFTCLI_CACHE names another folder\n"


def test_what_a_killed_process_left_goes_too(folder):
    cache = FeatureCache(folder, 10**9)
    cache.write(folder / "a.safetensors", TABLE)
    for name, age in ((".rift-1.tmp", 7200), (".rift-2.tmp", 0)):
        (folder / name).write_text("half")
        os.utime(folder / name, (1, time.time() - age))
    assert [entry.path.name for entry in cache_folder.entries(folder)] == [".rift-1.tmp", "a.safetensors"]
    cache_folder.prune(folder, 0)
    assert [path.name for path in folder.iterdir()] == [".rift-2.tmp"], "somebody may be writing it"


def test_tf32_is_for_gpus_alone_and_leaves_no_trace(rift, one_epoch_run, tmp_path):
    """On a CPU the numbers are those of fp32; what torch computes with afterwards is what it computed with before."""
    import torch

    from riftcli.evaluation.features import computing

    products, reports = torch.backends.cuda.matmul, {}
    before = products.fp32_precision
    with computing("tf32", torch.device("cpu")):
        assert products.fp32_precision == "tf32"
    assert products.fp32_precision == before
    shutil.copytree(one_epoch_run, "r")
    for precision in ("tf32", "fp32"):
        code, out, err = rift("eval", "--run", "r", "--set", f"eval.precision={precision}", "--json")
        assert code == 0, err
        reports[precision] = json.loads(out)
        assert reports[precision]["env"]["precision"] == precision
    assert reports["tf32"]["metrics"] == reports["fp32"]["metrics"]


def test_bf16_is_asked_for_told_and_near(rift, tiny_recipe, write_recipe, folder, read_json, tmp_path):
    """Of both models; features of one precision are not taken for those of the other."""
    tiny_recipe["eval"] |= {"precision": "bf16", "metrics": ["acc", "cka", "nll"]}
    assert rift("finetune", "--recipe", write_recipe(tiny_recipe), "--out", "r")[0] == 0
    assert read_json(tmp_path / "r/metrics.json")["env"]["evaluation_precision"] == "bf16"
    tables = set(folder.glob("*.safetensors"))
    reports = {}
    for precision in ("bf16", "fp32"):
        code, out, err = rift("eval", "--run", "r", "--set", f"eval.precision={precision}", "--json")
        assert code == 0, err
        reports[precision] = json.loads(out)
        assert reports[precision]["env"]["precision"] == precision
    assert len(set(folder.glob("*.safetensors")) - tables) == 3, "bf16: the finetuned model; fp32: both"
    values = [reports[precision]["metrics"]["nll"]["value"] for precision in ("bf16", "fp32")]
    assert values[0] != values[1] and values[0] == pytest.approx(values[1], rel=0.02)
    assert read_json(tmp_path / "r/metrics.json")["metrics"]["nll"]["value"] == values[0]


def test_a_head_that_took_long_to_fit_is_shared_by_seeds_and_strengths(rift, tiny_recipe, write_recipe, folder, monkeypatch):
    fits, real = [], network.fit_head
    monkeypatch.setattr(network, "fit_head", lambda *arguments: fits.append(1) or real(*arguments))
    tiny_recipe["train"] |= {"head_init": "linear_probe", "epochs": 1}
    recipe = write_recipe(tiny_recipe)

    def run(out: str, *settings: str) -> tuple[int, bool, bytes]:
        del fits[:]
        code, _, err = rift("finetune", "--recipe", recipe, "--out", out, *[word for one in settings for word in ("--set", one)])
        assert code == 0 and err.count("head: linear probe on the features of ") == 1, err
        return len(fits), ", fitted before" in err, Path(out, "model/model.safetensors").read_bytes()

    little = run("little")
    assert little[:2] == run("again")[:2] == (1, False), "a small one is fitted anew sooner than it is found"
    monkeypatch.setattr(network, "WORTH_KEEPING", 1)
    tables = set(folder.glob("*.safetensors"))
    assert run("first") == little
    (kept,) = set(folder.glob("*.safetensors")) - tables
    assert run("second") == (0, True, little[2]), "the same run"
    assert run("seed", "train.seed=3", "optim.lr=2e-3", "regularizer.strength=0.5")[:2] == (0, True)
    assert run("loss", "objective.label_smoothing=0.1")[:2] == (1, False), "another loss has another head"
    assert run("fewer", "data.train={from: train, limit: 100}")[:2] == (1, False)
    assert run("none", "eval.cache=null")[:2] == (1, False)
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)  # which sum in another order
    try:
        assert run("threads")[:2] == (1, False)
    finally:
        torch.set_num_threads(threads)
    kept.write_bytes(kept.read_bytes()[:-1] + b"x")
    assert run("damaged") == little and run("mended") == (0, True, little[2])
