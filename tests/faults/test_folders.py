"""F3, F5, F21, F25, F26: what is written goes where it was meant to go, whole, and a run goes on only as it began."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from riftcli import files
from riftcli.errors import StorageError

# ---- single files


def test_only_regular_files_are_replaced(tmp_path):
    link, pipe, folder = tmp_path / "link", tmp_path / "pipe", tmp_path / "folder"
    (tmp_path / "target").write_text("precious")
    link.symlink_to("target")
    os.mkfifo(pipe)
    folder.mkdir()
    for path, kind in ((link, "a link"), (pipe, "a named pipe"), (folder, "a folder"), (Path("/dev/null"), "a device")):
        for write in (files.write_text, lambda p, t: files.open_append(p)):
            with pytest.raises(StorageError) as caught:
                write(path, "x")
            assert str(caught.value) == f"{path}: is {kind}, not a regular file, and is left alone; name another file"
    assert (tmp_path / "target").read_text() == "precious"
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)


def test_a_file_is_whole_or_as_it_was(tmp_path):
    path = tmp_path / "a.txt"
    files.write_text(path, "before")
    with pytest.raises(ZeroDivisionError), files.writing(path) as file:
        file.write("half")
        raise ZeroDivisionError
    assert path.read_text() == "before"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.txt"], "nothing is left beside it"
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~files._UMASK


def test_temporary_names_cannot_be_foreseen(tmp_path, monkeypatch):
    """A link in the place of what is written first would be followed."""
    seen = []
    with files.replacing(tmp_path / "a") as one, files.replacing(tmp_path / "b") as two:
        seen += [one.name, two.name]
        assert all(stat.S_IMODE(path.lstat().st_mode) == 0o600 for path in (one, two))
    assert len({*seen}) == 2 and all(name.startswith(".rift-") for name in seen)


FULL = """
import resource, signal, sys
from pathlib import Path
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
from riftcli import cli
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
sys.exit(cli.run({arguments!r}))
"""


def with_a_full_disk(tmp_path: Path, limit: int, *arguments: object) -> subprocess.CompletedProcess:
    """A command for which no file can have more than `limit` bytes."""
    code = FULL.format(limit=limit, arguments=[str(a) for a in arguments])
    return subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120)


def test_a_full_disk_while_the_best_weights_are_saved(tiny_recipe, write_recipe, tmp_path):
    done = with_a_full_disk(tmp_path, 100_000, "finetune", "--recipe", write_recipe(tiny_recipe), "--out", "r")
    line = done.stderr.splitlines()[-1]
    assert (done.returncode, "Traceback" in done.stderr) == (8, False), done.stderr
    assert (
        line.startswith("error: r/model/model.safetensors: cannot be written (") and "it needs 112 kB; free some space" in line
    ), line
    assert not list((tmp_path / "r").rglob(".rift-*")), "no half-written file is left"


def test_a_full_disk_under_the_feature_cache(tiny_recipe, write_recipe, tmp_path):
    tiny_recipe["eval"]["cache"] = str(tmp_path / "cache")
    done = with_a_full_disk(tmp_path, 5_000, "finetune", "--recipe", write_recipe(tiny_recipe), "--out", "r")
    line = done.stderr.splitlines()[-1]
    assert done.returncode == 8, done.stderr
    assert line.startswith(f"error: {tmp_path}/cache/") and "cannot be written (" in line and "free some space" in line
    assert not list((tmp_path / "cache").iterdir())


# ---- outputs of commands


@pytest.fixture
def finished(one_epoch_run):
    """The folder with a finished run `r` and its recipe."""
    return one_epoch_run.parent


def test_outputs_that_are_no_files(finished, rift, tmp_path):
    from PIL import Image

    Image.new("L", (8, 8)).save("x.png")
    Path("target.csv").write_text("precious")
    Path("link.csv").symlink_to("target.csv")
    os.mkfifo("pipe.csv")
    run = finished / "r"
    for command in (
        ["report", run, "--out", "/dev/null"],
        ["report", run, "--out", "pipe.csv"],
        ["predict", run, "x.png", "--out", "link.csv"],
        ["predict", run, "x.png", "--out", "pipe.csv"],
        ["recipes", "cp", "demo_rift", "/dev/null"],
    ):
        code, _, err = rift(*command)
        assert code in (2, 8) and ("not a regular file" in err or "exists" in err), (command, err)
    assert Path("target.csv").read_text() == "precious"
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode) and stat.S_ISFIFO(Path("pipe.csv").stat().st_mode)


@pytest.mark.parametrize("name", [".lock", "train.log", "metrics.jsonl", "eval", "model", "logs"])
def test_a_run_folder_never_writes_outside_itself(finished, rift, tmp_path, name):
    """One that came from elsewhere could have links in it."""
    shutil.copytree(finished / "r", "r")
    outside = tmp_path / "outside"
    entry = Path("r") / name
    if entry.is_dir():
        shutil.move(entry, outside)
    else:
        outside.write_text("precious")
        entry.unlink(missing_ok=True)
    entry.symlink_to(outside)
    record = json.loads(Path("r/run.json").read_text())
    Path("r/run.json").write_text(json.dumps({**record, "status": "interrupted"}))
    before = {path: path.read_bytes() for path in [outside, *outside.rglob("*")] if path.is_file()}
    code, _, err = rift("finetune", "--resume", "r")
    assert (code, err) == (
        8,
        f"error: r/{name}: is a link, and nothing is written through it; put the file itself there, or delete it\n",
    )
    code, _, err = rift("eval", "--run", "r")
    assert code == 8 and "is a link, and nothing is written through it" in err, err
    assert {path: path.read_bytes() for path in [outside, *outside.rglob("*")] if path.is_file()} == before


# ---- every state of a folder has one way on


def killed_at(place: str, tmp_path: Path, *arguments: object) -> subprocess.CompletedProcess:
    """A command that is killed (SIGKILL) when it gets to `module:function`, before or after it ran (`module:function+`)."""
    module, _, name = place.partition(":")
    after = name.endswith("+")
    code = f"""
import importlib, os, signal, sys
from riftcli import cli
place = importlib.import_module({module!r})
owner, _, name = {name.rstrip("+")!r}.rpartition(".")
owner = getattr(place, owner) if owner else place
real = getattr(owner, name)
def dies(*arguments, **options):
    if {after}:
        real(*arguments, **options)
    os.kill(os.getpid(), signal.SIGKILL)
setattr(owner, name, dies)
cli.run({[str(a) for a in arguments]!r})
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == -9, done.stderr
    return done


def model_digest(run: Path) -> str:
    return hashlib.sha256((run / "model/model.safetensors").read_bytes()).hexdigest()


def test_killed_before_there_was_a_run(finished, rift, tmp_path):
    """A half written run.json and the lock are no reason to refuse the folder: the next command takes them away."""
    Path("r").mkdir()
    for name in (".lock", ".rift-abc.tmp"):
        (tmp_path / "r" / name).touch()
    assert rift("finetune", "--recipe", finished / "tiny.yaml", "--out", "r")[0] == 0
    assert not list(Path("r").glob(".rift-*"))


def test_killed_while_it_starts(finished, rift, tmp_path):
    command = ["finetune", "--recipe", finished / "tiny.yaml", "--out", "r"]
    killed_at("riftcli.runs.folder:files.write_text+", tmp_path, *command)
    assert json.loads(Path("r/run.json").read_text())["status"] == "starting"
    code, _, err = rift("finetune", "--resume", "r")
    assert (code, err) == (
        2,
        "error: --resume r: was killed while it was starting, and nothing is there to go on with; give the command that started "
        "it once more, without --resume\n",
    )
    assert rift(*command)[0] == 0, "the command once more"
    assert model_digest(Path("r")) == model_digest(finished / "r")


def test_killed_before_the_first_checkpoint(finished, rift, tmp_path):
    killed_at("riftcli.training.loop:save", tmp_path, "finetune", "--recipe", finished / "tiny.yaml", "--out", "r")
    assert json.loads(Path("r/run.json").read_text())["status"] == "running"
    code, out, err = rift("runs", "--in", ".")
    assert code == 0 and "interrupted" in out + err
    code, _, err = rift("finetune", "--recipe", finished / "tiny.yaml", "--out", "r")
    assert code == 2 and "go on with --resume r, replace it with --overwrite" in err
    record = json.loads(Path("r/run.json").read_text())
    assert (record["status"], record["error"]) == ("interrupted", "ended without a word: killed, or the machine went down")
    code, _, err = rift("finetune", "--resume", "r")
    assert code == 0 and "the run was interrupted before its first checkpoint: it begins anew" in err
    assert model_digest(Path("r")) == model_digest(finished / "r")
    rows = [json.loads(line) for line in Path("r/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row["kind"] == "step"] == [1, 2, 3, 4]


def test_a_series_goes_on_after_a_kill_before_the_first_checkpoint(finished, rift, tmp_path):
    command = ["finetune", "--recipe", finished / "tiny.yaml", "--out", "s", "--repeats", 2]
    killed_at("riftcli.training.loop:save", tmp_path, *command)
    assert rift(*command)[0] == 0
    assert {path.parent.name for path in Path("s").glob("*/metrics.json")} == {"s0", "s1"}


def test_overwrite_deletes_nothing_before_there_is_something_in_its_place(finished, rift, tmp_path):
    shutil.copytree(finished / "r", "r")
    before = model_digest(Path("r"))
    again = ["finetune", "--recipe", finished / "tiny.yaml", "--out", "r", "--overwrite"]
    assert rift(*again, "--set", "data.train.limit=9")[0] == 3
    assert model_digest(Path("r")) == before and not Path("r/replaced").exists()
    killed_at("riftcli.training.loop:save", tmp_path, *again)
    assert model_digest(Path("r/replaced")) == before, "killed before its first checkpoint: the old run is all there"
    assert rift("knn", "--run", "r/replaced")[0] == 0
    killed_at("riftcli.training.loop:save", tmp_path, *again)
    assert model_digest(Path("r/replaced")) == before, "an attempt without a checkpoint does not push it out"
    assert rift(*again)[0] == 0
    assert not Path("r/replaced").exists()


def test_a_wrong_series_keeps_the_old_one(finished, rift):
    command = ["finetune", "--recipe", finished / "tiny.yaml", "--out", "s", "--repeats", 2]
    assert rift(*command)[0] == 0
    before = [model_digest(Path("s") / name) for name in ("s0", "s1")]
    code, _, err = rift(*command, "--overwrite", "--set", "data.train.limit=9")
    assert code == 3, err
    assert [model_digest(Path("s") / name) for name in ("s0", "s1")] == before
    command[-1] = 3
    assert rift(*command)[0] == 0
    command[-1] = 2
    assert rift(*command, "--overwrite")[0] == 0
    assert {path.parent.name for path in Path("s").glob("*/metrics.json")} == {"s0", "s1"}, "s2 is of no series any more"


def test_a_kill_while_the_log_is_cut_back(tmp_path, monkeypatch):
    from riftcli.runs.folder import RunFolder

    run = tmp_path / "r"
    folder = RunFolder.create(run)
    folder.start("a: 1\n", "a: 1\n", {})
    for step in range(1, 17):
        folder.append({"kind": "step", "step": step})
    before = (run / "metrics.jsonl").read_text()
    real = Path.replace

    def dies(path, target):
        if Path(target).name == "metrics.jsonl":
            raise KeyboardInterrupt
        return real(path, target)

    monkeypatch.setattr(Path, "replace", dies)
    with pytest.raises(KeyboardInterrupt):
        folder.truncate_metrics(8)
    assert (run / "metrics.jsonl").read_text() == before
    monkeypatch.setattr(Path, "replace", real)
    folder.truncate_metrics(8)
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 8


# ---- F25: what a run goes on with is what it began with


@pytest.fixture
def begun(rift, tiny_recipe, tmp_path, write_recipe, tiny_weights):
    """A run on image files with a retention set and weights of its own, interrupted after its first epoch."""
    import numpy as np
    from PIL import Image

    generator = np.random.default_rng(0)
    for place in ("task/train", "task/test", "other/train", "other/test"):
        for label in ("a", "b"):
            folder = tmp_path / place / label
            folder.mkdir(parents=True)
            for i in range(10):
                level = (200 if label == "a" else 50) + generator.integers(0, 40, (16, 16, 3))
                Image.fromarray(level.astype("uint8")).save(folder / f"{i}.png")
    shutil.copytree(tiny_weights, tmp_path / "weights")
    tiny_recipe["model"] = {"name": f"local-dir:{tmp_path / 'weights'}"}
    tiny_recipe["data"] = {"format": "image_folder", "root": str(tmp_path / "task"), "val": {"fraction": 0.2}}
    tiny_recipe["retention"] = [{"format": "image_folder", "root": str(tmp_path / "other")}]
    tiny_recipe["eval"]["knn_k"] = 3
    tiny_recipe["train"] |= {"batch_size": 8, "epochs": 1}
    assert rift("finetune", "--recipe", write_recipe(tiny_recipe), "--out", "r")[0] == 0
    record = json.loads(Path("r/run.json").read_text())
    Path("r/run.json").write_text(json.dumps({**record, "status": "interrupted"}))
    return tmp_path


def _pixels(root: Path, place: str) -> None:
    from PIL import Image

    Image.new("RGB", (16, 16), (1, 2, 3)).save(root / place / "a/3.png")


def _weights(root: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = root / "weights/model.safetensors"
    tensors = load_file(path)
    tensors["norm.weight"] = tensors["norm.weight"] + 1
    save_file(tensors, path, metadata={"format": "pt"})
    (root / "weights/manifest.json").unlink()


def _recipe(root: Path) -> None:
    path = root / "r/recipe.resolved.yaml"
    path.write_text(path.read_text().replace("lr: 0.001", "lr: 0.5"))


CHANGES = {
    "pixels": (lambda root: _pixels(root, "task/train"), 3, "split 'train' has other images (their files have changed)"),
    "retention": (lambda root: _pixels(root, "other/test"), 3, "split 'retention/0' has other images (their files have changed)"),
    "a file more": (lambda root: shutil.copy(root / "task/train/a/1.png", root / "task/train/a/x.png"), 3, "has other samples"),
    "weights": (_weights, 4, "are not those that the run started with; put them back, or start a new run"),
    "recipe": (
        _recipe,
        2,
        "r/recipe.resolved.yaml: was changed since the run started: optim.lr: 0.001 -> 0.5; put it back as it was",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_run_goes_on_as_it_began(begun, rift, change):
    do, expected, text = CHANGES[change]
    do(begun)
    code, _, err = rift("finetune", "--resume", "r")
    assert code == expected and text in err, err


def test_untouched_it_goes_on(begun, rift):
    assert rift("finetune", "--resume", "r")[0] == 0


def test_a_digest_of_many_images_reads_some_of_them(tmp_path, monkeypatch):
    import numpy as np

    from riftcli.data import content
    from riftcli.data.split import Split

    for i in range(40):
        (tmp_path / f"{i}").write_bytes(bytes([i]) * 100)
    paths = [tmp_path / str(i) for i in range(40)]
    split = Split("train", [str(i) for i in range(40)], np.zeros(40, dtype=np.int64), ["a"], "multiclass", paths=paths)
    monkeypatch.setattr(content, "MOST_BYTES", 1000)
    first = content.content_digest(split)
    (tmp_path / "4").write_bytes(b"x" * 100)
    assert content.content_digest(split) != first, "every fourth is read"
    second = content.content_digest(split)
    (tmp_path / "5").write_bytes(b"x" * 101)
    assert content.content_digest(split) != second, "the size of every one counts"


# ---- F26


def test_a_damaged_feature_table_is_computed_anew(tmp_path):
    import torch
    from safetensors.torch import save_file

    from riftcli.evaluation.feature_cache import FeatureCache
    from riftcli.evaluation.features import FeatureTable
    from riftcli.models.published import sha256

    cache, path = FeatureCache(tmp_path), tmp_path / "abc.safetensors"
    cache.write(path, FeatureTable(torch.ones(4, 2), torch.ones(4, 3)))
    assert cache.read(path, 4) is not None
    assert cache.read(path, 5) is None
    for tensors in ({}, {"features": torch.ones(4, 2)}, {"features": torch.ones(4), "logits": torch.ones(4, 3)}):
        save_file(tensors, path)
        path.with_suffix(".sha256").write_text(sha256(path))
        assert cache.read(path, 4) is None, list(tensors)
    path.with_suffix(".sha256").write_bytes(b"\xff\xfe")
    assert cache.read(path, 4) is None


def test_a_flipped_byte_in_what_the_image_store_has_seen(tmp_path):
    """Each byte of the table in turn: the images are decoded anew, and are what they were."""
    import numpy as np
    from PIL import Image

    from riftcli.data.image_store import Decoding, ImageStore

    paths = []
    for i in range(3):
        paths.append(tmp_path / f"{i}.png")
        Image.new("RGB", (6, 6), (40 * i, 0, 0)).save(paths[-1])
    ImageStore(str(tmp_path / "cache"), Decoding(6)).reader(paths)
    (table,) = (tmp_path / "cache").rglob("*.seen.npy")
    whole = table.read_bytes()
    for at in range(0, len(whole), 7):
        table.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        reader = ImageStore(str(tmp_path / "cache"), Decoding(6)).reader(paths)
        assert [int(np.asarray(reader(i))[0, 0, 0]) for i in range(3)] == [0, 40, 80], at
