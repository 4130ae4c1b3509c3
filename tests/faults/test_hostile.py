"""Files, folders and names that somebody else has made: one line, nothing run, nothing shown that was not meant to be."""

from __future__ import annotations

import csv
import io
import json
import os
import resource
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file

from riftcli import escaping
from riftcli.errors import DataError, ModelError

# ---- weights and configurations of models


@pytest.fixture
def folder(tiny_weights, tmp_path):
    """A copy of the tiny model, without the digests that would tell of every change."""
    shutil.copytree(tiny_weights, tmp_path / "vit")
    (tmp_path / "vit/manifest.json").unlink()
    return tmp_path / "vit"


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            lambda t: t.index_fill(0, torch.tensor([0]), float("nan")),
            "has 32 of 3072 values that are NaN or inf; get the file again",
        ),
        (
            lambda t: t.index_fill(0, torch.tensor([0]), float("inf")),
            "has 32 of 3072 values that are NaN or inf; get the file again",
        ),
        (lambda t: t.int(), "is int32, which a copy to fp32 would change; convert it to fp32, and say how"),
        (lambda t: t > 0, "is bool, which a copy to fp32 would change; convert it to fp32, and say how"),
        (
            lambda t: t.to(torch.float8_e4m3fn),
            "is float8_e4m3fn, which a copy to fp32 would change; convert it to fp32, and say how",
        ),
    ],
    ids=["nan", "inf", "int", "bool", "fp8"],
)
def test_weights_that_are_no_numbers(folder, rift, tiny_recipe, write_recipe, change, text):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    save_file(
        {**tensors, "blocks.0.attn.qkv.weight": change(tensors["blocks.0.attn.qkv.weight"])}, path, metadata={"format": "pt"}
    )
    tiny_recipe["model"]["name"] = f"local-dir:{folder}"
    code, _, err = rift("finetune", "--recipe", write_recipe(tiny_recipe), "--out", "r")
    assert (code, err.splitlines()[-1]) == (4, f"error: weights local-dir:{folder}: blocks.0.attn.qkv.weight {text}")
    assert not Path("r").exists()


CONFIGURATIONS = [
    ({"pretrained_cfg": {"crop_pct": -1}}, "crop_pct must be a number from 0.05 to 2"),
    ({"pretrained_cfg": {"input_size": [3, -1, -1]}}, "input_size must be 3 channels, height and width from 1 to 8192"),
    ({"pretrained_cfg": {"interpolation": "evil"}}, "interpolation must be one of "),
    ({"model_args": {"depth": 100_000}}, "depth must be a whole number from 1 to 1000, got 100000"),
    ({"model_args": {"embed_dim": 1_000_000}}, "embed_dim must be a whole number from 1 to 65536, got 1000000"),
    ({"model_args": {"depth": 1000, "embed_dim": 65_536}}, "depth 1000 x embed_dim 65536 takes "),
    ({"model_args": {"checkpoint_path": "evil.pth"}}, "checkpoint_path is no form of a network"),
    ({"num_classes": -3}, "num_classes must be a whole number from 0 to 1000000, got -3"),
]


@pytest.mark.parametrize(("change", "text"), CONFIGURATIONS, ids=lambda value: None)
def test_a_configuration_is_checked_before_anything_is_built(folder, rift, change, text):
    config = json.loads((folder / "config.json").read_text())
    for key, value in change.items():
        config[key] = {**config[key], **value} if isinstance(value, dict) else value
    (folder / "config.json").write_text(json.dumps(config))
    began = time.monotonic()
    code, _, err = rift("knn", "--model", f"local-dir:{folder}", "--data", "demo_full")
    assert time.monotonic() - began < 20
    assert code == 4 and text in err and "Traceback" not in err, err


@pytest.mark.parametrize("key", ["checkpoint_path", "pretrained_cfg", "cache_dir", "pretrained_custom_load"])
def test_arguments_of_a_recipe_that_name_files_hubs_or_code(rift, tiny_recipe, write_recipe, tmp_path, key):
    (tmp_path / "evil.pth").write_bytes(b"")
    tiny_recipe["model"]["args"] = {key: str(tmp_path / "evil.pth")}
    code, _, err = rift("recipes", "validate", write_recipe(tiny_recipe))
    assert code == 2 and f"model.args: {key} is no form of a network (it names files, hubs or code, or riftcli sets it)" in err, (
        err
    )


def test_an_expression_from_a_file_is_not_run(tmp_path):
    """`(a+)+$` on forty letters would run for hours."""
    from riftcli.models.peft_format import _of_layer

    began = time.monotonic()
    with pytest.raises(ModelError, match="a regular expression is not read; name the layers instead"):
        _of_layer({"alpha_pattern": {"(a+)+$": 3}, "lora_alpha": 1}, "lora_alpha", "a" * 40 + "!", tmp_path)
    assert time.monotonic() - began < 1
    assert _of_layer({"alpha_pattern": {"blocks.0": 3}, "lora_alpha": 1}, "lora_alpha", "x.blocks.0", tmp_path) == 3


# ---- images


def test_no_program_is_started_on_an_image(tmp_path, monkeypatch):
    """An EPS named scan.png: Pillow would start Ghostscript."""
    from riftcli.data.images import read_image

    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/ghostscript-ran\n")
    (tools / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    (tmp_path / "scan.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n")
    with pytest.raises(DataError, match=r"scan.png: unreadable image \(cannot identify image file"):
        read_image(tmp_path / "scan.png")
    assert not (tmp_path / "ghostscript-ran").exists()


def test_an_image_that_is_a_thread(tmp_path):
    from riftcli.data.images import read_image

    Image.new("L", (1_000_000, 1)).save(tmp_path / "thread.png")
    began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DataError) as caught:
        read_image(tmp_path / "thread.png")
    assert str(caught.value) == (
        f"{tmp_path}/thread.png: 1000000 x 1 pixels, more than 100 times as long as wide; crop it, or take it out of the split"
    )
    assert time.monotonic() - began < 1 and resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000


def test_a_pipe_named_as_an_image(tmp_path):
    from riftcli.data.images import read_image

    os.mkfifo(tmp_path / "x.png")
    with pytest.raises(DataError, match="not a file; take it out of the split"):
        read_image(tmp_path / "x.png")


# ---- sizes


def test_sizes_are_looked_at_before_files_are_read(rift, tmp_path):
    for name in ("huge.yaml", "run.json"):
        with (tmp_path / name).open("wb") as file:
            file.truncate(3 << 30)  # a hole: takes no space
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    code, _, err = rift("finetune", "--recipe", "huge.yaml")
    assert (code, err) == (2, "error: recipe huge.yaml: larger than 256 kB: this is not a recipe\n")
    (tmp_path / "r").mkdir()
    (tmp_path / "run.json").rename("r/run.json")
    code, _, err = rift("finetune", "--resume", "r")
    assert code in (2, 8) and "more than the " in err, err
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000


# ---- ways out of the data


@pytest.fixture
def table(tmp_path):
    """A table of four images in `data`, and an image outside."""
    (tmp_path / "data").mkdir()
    for i in range(4):
        Image.new("L", (8, 8), 50 * i).save(tmp_path / f"data/{i}.png")
    (tmp_path / "data/labels.csv").write_text("image,label\n" + "".join(f"{i}.png,{i % 2}\n" for i in range(4)))
    Image.new("L", (8, 8), 7).save(tmp_path / "outside.png")

    def load(labels="labels.csv", **keys):
        from riftcli import recipe as recipes
        from riftcli.data.splits import load_split

        source = {
            "format": "csv_table",
            "root": str(tmp_path / "data"),
            "labels": {"train": labels},
            "label_column": "label",
            **keys,
        }
        text = yaml.safe_dump({"model": {"name": "asset:demo_vit"}, "data": {**source, "val": None, "test": None}})
        recipe = recipes.parse(text, "x.yaml", [])
        return load_split(recipe.data.source, recipe.data.train)

    return load


def test_links_that_lead_out_of_the_data(table, tmp_path):
    (tmp_path / "data/3.png").unlink()
    (tmp_path / "data/3.png").symlink_to(tmp_path / "outside.png")
    with pytest.raises(DataError, match="leads out of the data root, to .*outside.png; .*follow_links"):
        table()
    assert len(table(follow_links=True)) == 4
    (tmp_path / "data/3.png").unlink()
    (tmp_path / "data/3.png").symlink_to("2.png")  # within
    assert len(table()) == 4


def test_a_label_file_elsewhere_is_not_shown(table, tmp_path):
    (tmp_path / "secret.csv").write_text("root:x:0:0:the secret:/root:/bin/bash\n")
    for labels in ("../secret.csv", str(tmp_path / "secret.csv"), "/etc/passwd"):
        with pytest.raises(DataError) as caught:
            table(labels=labels)
        assert "secret:" not in str(caught.value).replace(str(tmp_path), "") and "root:" not in str(caught.value)
        assert "leads out of the data root" in str(caught.value) or "outside" in str(caught.value)


# ---- names in what we print and write


def test_what_would_clear_the_screen_is_shown():
    assert escaping.shown("a\x1b[2Jb\n") == "a\\x1b[2Jb\n"
    assert escaping.one_line("a\nb\udcff") == "a\\nb\\udcff"
    assert escaping.latex("\\input{evil}^$_") == r"\textbackslash{}input\{evil\}\textasciicircum{}\$\_"
    assert escaping.markdown("<script>|[a](b)") == r"&lt;script&gt;\|\[a\](b)"
    assert [escaping.cell(value) for value in ("=HYPERLINK(1)", "+1", "-x", "@a", "b", 3, "-1.5")] == [
        "'=HYPERLINK(1)", "+1", "'-x", "'@a", "b", 3, "-1.5"
    ]  # fmt: skip
    assert len(escaping.file_name("x" * 300).encode()) <= 255 and escaping.file_name("../a") == "..-a"


NAMES = ["=HYPERLINK(1)", "$a^2_", "<script>x", "\x1b[31mred", "n" * 200]


@pytest.mark.page
def test_any_name_goes_through_training_and_every_table(rift, tiny_recipe, write_recipe, tmp_path):
    """Classes, files and runs with names that are formulas, commands of a terminal, tags, or no text at all."""
    generator = np.random.default_rng(0)
    for split in ("train", "test"):
        for k, label in enumerate(NAMES):
            place = tmp_path / "pics" / split / label
            place.mkdir(parents=True)
            for i in range(6):
                name = b"odd\xff%d.png" % i if i == 0 else b"\x1b[2J%d.png" % i
                pixels = generator.integers(0, 40, (16, 16, 3), dtype=np.uint8) + 40 * k
                out = io.BytesIO()
                Image.fromarray(pixels).save(out, "PNG")
                Path(os.fsdecode(os.fsencode(place) + b"/" + name)).write_bytes(out.getvalue())
    tiny_recipe["data"] = {"format": "image_folder", "root": str(tmp_path / "pics"), "val": {"fraction": 0.34}}
    tiny_recipe["train"] |= {"epochs": 1, "batch_size": 8}
    run = r"\input{x}^$"
    code, _, err = rift("finetune", "--recipe", write_recipe(tiny_recipe), "--out", run)
    assert code == 0, err
    for command in (
        ["knn", "--run", run],
        ["similarity", "--run", run, "--layers", "all"],
        ["clinical", "--run", run],
        ["attention", "--run", run],
    ):
        code, _, more = rift(*command)
        assert code == 0, (command, more)
        err += more
    code, _, more = rift("compare", run, "--out", "c")
    assert code == 0, more
    err += more
    code, out, more = rift("predict", run, tmp_path / "pics/test" / NAMES[0])
    assert code == 0, more
    assert "\x1b" not in err + more + out, "no order to the terminal"
    assert "\x1b" not in Path(run, "train.log").read_text()
    tex, text = Path("c/compare.tex").read_text(), Path("c/compare.md").read_text()
    assert r"\textbackslash{}input" in tex and r"\input" not in tex.replace(r"\textbackslash{}input", "")
    assert "\\input{x}^$" not in text.replace("\\\\input", "")
    for path in Path(run).rglob("*.csv"):
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.reader(file):
                assert not any(value.startswith(("=", "@")) for value in row), path
    for path in Path(run).rglob("*.json"):
        json.loads(path.read_text(encoding="utf-8"))
    page = Path(run, "report.html").read_text(encoding="utf-8")
    assert "<script>x" not in page
    assert "<script>x" not in Path(run, "model/README.md").read_text()


def test_a_name_that_no_folder_can_have_is_one_line(rift, tiny_recipe, write_recipe):
    for name in ("x" * 300, os.fsdecode(b"run\xff")):
        code, _, err = rift("finetune", "--recipe", write_recipe(tiny_recipe), "--out", name)
        assert code == 2 and "not a name for a run folder" in err and "Traceback" not in err, err


# ---- what a run from elsewhere could do


def test_pickles_are_never_opened(folder):
    """timm would read pytorch_model.bin, and before 1.0.26 run what is in it."""
    from riftcli.models.backbone import Backbone

    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"no model.safetensors in it \(other formats can run code when loaded\)"):
        Backbone(f"local-dir:{folder}").build()


def test_a_page_shows_nothing_from_outside_its_run(one_epoch_run, rift, tmp_path):
    import base64

    run, secret = shutil.copytree(one_epoch_run, tmp_path / "r"), b"the secret of somebody else"
    (tmp_path / "secret").write_bytes(secret)
    place = next(run.glob("eval/*/mistakes.csv"))
    text = place.read_text()
    assert "mistakes/01.jpg" in text
    place.write_text(text.replace("mistakes/01.jpg", "../../../secret"))
    code, _, err = rift("report", run)
    assert code == 0, err
    page = (run / "report.html").read_text()
    assert base64.b64encode(secret).decode()[:20] not in page


@pytest.mark.page
def test_a_split_named_as_a_way_out(rift, tiny_recipe, write_recipe, tmp_path):
    (tmp_path / "data").mkdir()
    rows = ["image,label,fold"]
    for i in range(48):
        Image.new("L", (16, 16), 5 * i).save(tmp_path / f"data/{i}.png")
        rows.append(f"{i}.png,{i % 2},{'train' if i < 40 else '../../../ESC'}")
    (tmp_path / "data/labels.csv").write_text("\n".join(rows) + "\n")
    tiny_recipe["data"] = {"format": "csv_table", "root": str(tmp_path / "data"), "labels": "labels.csv", "split_column": "fold"}
    tiny_recipe["data"] |= {"label_column": "label", "val": {"fraction": 0.2}, "test": "../../../ESC"}
    tiny_recipe["train"] |= {"epochs": 1, "batch_size": 8}
    code, _, err = rift("finetune", "--recipe", write_recipe(tiny_recipe), "--out", "a/b/r")
    assert code == 0, err
    assert not list(tmp_path.rglob("ESC*")) and list(Path("a/b/r/eval").glob("*ESC*")) == list(Path("a/b/r/eval").iterdir())
