"""Evaluation as people meet it: one bad image of many, a folder of images, a run that is read-only, running, or lacks weights."""

from __future__ import annotations

import csv
import errno
import fcntl
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from riftcli.runs.result_table import ResultTable


@pytest.fixture
def pictures(tmp_path) -> Path:
    """Five images, one of them cut off, and a file that is none."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(5):
        pixels = np.random.default_rng(i).integers(0, 256, (20, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    (folder / "2.png").write_bytes((folder / "2.png").read_bytes()[:200])
    (folder / "scan.heic").write_bytes(b"x")
    return folder


def test_one_bad_image_costs_no_others(rift, run, pictures, tmp_path):
    code, _, err = rift("predict", run, pictures, "--out", tmp_path / "p.csv")
    assert code == 3
    lines = err.strip().splitlines()
    assert "warning: images: 1 .heic files are ignored" in lines[0]
    assert "error: 1 of 5 images could not be read; the others are done" in lines
    assert any(line.startswith(f"error: {pictures}/2.png: unreadable image") for line in lines)
    rows = list(csv.DictReader((tmp_path / "p.csv").open()))
    assert [Path(row["path"]).name for row in rows] == [f"{i}.png" for i in range(5)], "in their order"
    bad = rows.pop(2)
    assert bad["class"] == bad["p_0"] == ""
    assert bad["error"].startswith(f"{pictures}/2.png: unreadable image")
    for row in rows:
        assert sum(float(value) for key, value in row.items() if key.startswith("p_")) == pytest.approx(1, abs=1e-4)
        assert row["error"] == ""
    code, out, _ = rift("predict", run, pictures, "--json")
    found = json.loads(out)["rows"]
    assert code == 3
    assert [row["error"] is None for row in found] == [True, True, False, True, True]
    (pictures / "2.png").unlink()
    code, out, _ = rift("predict", run, pictures)
    assert code == 0
    assert "error" not in out.splitlines()[0]
    assert len(out.splitlines()) == 5
    for file in pictures.glob("*.png"):
        file.write_bytes(b"no image")
    code, out, err = rift("predict", run, pictures)
    assert (code, out) == (3, "")
    assert "none of the 4 images can be read" in err


def test_attention_respects_the_count_of_named_images(rift, run, pictures):
    (pictures / "2.png").unlink()
    code, out, err = rift("attention", "--run", run, "--image", pictures, "--count", 2, "--no-heads", "--json")
    assert code == 0, err
    report = json.loads(out)
    assert report["settings"]["images"] == 2
    assert report["settings"]["among"] == 4
    assert "mean over 2 of 4 images" in err


def test_numbers_of_a_run_that_cannot_be_written_are_printed(rift, run, tmp_path, monkeypatch):
    # whoever runs the tests as root may write anywhere: the file system says no in its place
    def refused(self, *args, **kwargs):
        raise OSError(errno.EROFS, "Read-only file system", str(self))

    original = Path.mkdir
    monkeypatch.setattr(Path, "mkdir", lambda self, *a, **k: refused(self) if str(run) in str(self) else original(self, *a, **k))
    code, out, err = rift("eval", "--run", run, "--split", "val", "--json")
    assert code == 8
    assert json.loads(out)["metrics"]["acc"]["value"] is not None
    last = err.strip().splitlines()[-1]
    assert last.startswith(f"error: {run}/eval/digits-val")
    assert last.endswith(
        "cannot be written (Read-only file system); the numbers above are complete; "
        "copy the run to a place of your own, or use --json"
    )


def test_a_table_that_cannot_be_written_is_printed_first(rift, run, monkeypatch):
    def refused(self, folder):
        raise OSError(errno.EROFS, "Read-only file system", str(folder))

    monkeypatch.setattr(ResultTable, "write", refused)
    code, out, err = rift("similarity", "--run", run, "--json")
    assert code == 8
    assert json.loads(out)["rows"]
    assert (
        "cannot be written (Read-only file system); the numbers above are complete; with --out DIR they are kept elsewhere" in err
    )


def test_a_run_in_progress_is_named(rift, run):
    with (run / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for command in (["eval", "--run", run], ["similarity", "--run", run]):
            code, _, err = rift(*command)
            assert code == 0, err
            assert f"note: {run} is still in progress: these are the weights of its best evaluation so far" in err
    assert "still in progress" not in rift("eval", "--run", run)[2]


def test_a_run_without_its_weights_has_one_way_on(rift, run):
    shutil.rmtree(run / "model")
    again = f"finished, but its weights (model/) are gone; train it again: rift finetune --recipe {run}/recipe.resolved.yaml"
    assert rift("eval", "--run", run)[::2] == (2, f"error: --run {run}: {again}\n")
    assert rift("finetune", "--resume", run)[::2] == (2, f"error: --resume {run}: {again}\n")
    code, _, err = rift("finetune", "--recipe", run / "recipe.resolved.yaml", "--out", "again")
    assert code == 0, err


def test_many_bad_images_are_counted_once(rift, run, pictures, tmp_path):
    for i in range(5, 13):
        (pictures / f"{i}.png").write_bytes(b"no image")
    code, _, err = rift("predict", run, pictures, "--out", tmp_path / "p.csv")
    assert code == 3
    assert "error: 9 of 13 images could not be read; the others are done" in err
    assert "and 4 more (9 in all)" in err
