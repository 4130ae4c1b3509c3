"""Every reader against damaged files: an error of ours or a value, never a traceback, a hang, or a gigabyte (F16, F17, F18).

5,000 mutations in all, drawn anew from the same seeds each time; `FUZZ=N` draws N times as many.
"""

from __future__ import annotations

import io
import json
import os
import random
import resource
import shutil
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from dataset_copies import flickr
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save

from riftcli import recipe as recipes
from riftcli.errors import RiftError

TIMES = int(os.environ.get("FUZZ", "1"))
SLOWEST = 5.0  # seconds that one read may take
MOST = 1.5e9  # bytes by which the memory of the process may grow over all of them

KEYS = [
    "model",
    "data",
    "regularizer",
    "adapter",
    "objective",
    "train",
    "eval",
    "retention",
    "reference",
    "prompts",
    "launch",
    "name",
]
KEYS += ["format", "strength", "keep", "val", "from", "fraction", "folds", "metrics", "lr", "epochs", "zero_shot"]


def damaged(content: bytes, draw: random.Random) -> bytes:
    """A few of: bits flipped, bytes put in, cut out, repeated, or the end cut off."""
    data = bytearray(content)
    for _ in range(draw.choice((1, 1, 1, 2, 5))):
        at = draw.randrange(len(data) + 1)
        how = draw.randrange(6)
        if how == 0 and data:
            data[at % len(data)] ^= 1 << draw.randrange(8)
        elif how == 1:
            data[at:at] = draw.randbytes(draw.choice((1, 4, 30)))
        elif how == 2:
            del data[at : at + draw.choice((1, 3, 40))]
        elif how == 3:
            data[at:at] = data[at : at + 60]
        elif how == 4:
            del data[at:]
        else:
            data[at : at + 1] = draw.choice((b"\0", b"\xff", b"\n", b'"', b"{", b"[", b"-", b"9" * 30, b"1e999", b"../", b"null"))
    return bytes(data)


def swapped(value: Any, draw: random.Random) -> Any:
    """JSON with one value in it replaced by one of another kind, or with a key gone or renamed."""
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        entries = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
        for key, entry in entries:
            places.append((node, key))
            walk(entry)

    value = json.loads(json.dumps(value))
    walk(value)
    if not places:
        return draw.choice((None, 3, [], "x"))
    node, key = draw.choice(places)
    how = draw.randrange(4)
    if how == 0:
        del node[key]
    elif how == 1 and isinstance(node, dict):
        node[str(key) + "x"] = node.pop(key)
    else:
        node[key] = draw.choice((None, True, -1, 0, 10**30, 1.5, -1e308, "", "x", "../x", [], [1], {}, {"a": 1}, [[]], "é\u0000"))
    return value


def check(read: Callable[[bytes], Any], contents: list[bytes], count: int, name: str, structured: bool = False) -> None:
    """`read` of so many mutations of the contents either works or raises a RiftError, in little time."""
    draw, grown = random.Random(name), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    wrong: dict[str, bytes] = {}  # of each kind one
    for i in range(count * TIMES):
        content = draw.choice(contents)
        by_value = structured and i % 2
        content = json.dumps(swapped(json.loads(content), draw)).encode() if by_value else damaged(content, draw)
        began = time.monotonic()
        try:
            read(content)
        except RiftError as error:
            if not str(error):
                wrong["an error without a word"] = content
        except Exception as error:
            line = traceback.extract_tb(error.__traceback__)[-1]
            wrong[f"{type(error).__name__} at {Path(line.filename).name}:{line.lineno}: {error}"[:200]] = content
        if time.monotonic() - began > SLOWEST:
            wrong[f"{time.monotonic() - began:.0f} s"] = content
    assert not wrong, "\n".join(f"{what}\n    {content[:300]!r}" for what, content in list(wrong.items())[:12])
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - grown) * 1024 < MOST


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_recipe_of):
    from riftcli import cli

    folder, recipe = tmp_path_factory.mktemp("fuzz"), tiny_recipe_of()
    recipe["train"]["epochs"] = 1
    recipe["retention"] = [{"format": "digits", "train": {"from": "train", "limit": 40}, "test": {"from": "test", "limit": 40}}]
    (folder / "tiny.yaml").write_text(yaml.safe_dump(recipe))
    assert cli.run(["finetune", "--recipe", str(folder / "tiny.yaml"), "--out", str(folder / "r")]) == 0
    assert cli.run(["knn", "--run", str(folder / "r")]) == 0
    return folder / "r"


def test_recipes(finished):
    contents = [(finished / "recipe.yaml").read_bytes(), (finished / "recipe.resolved.yaml").read_bytes()]
    contents += [recipes.source(name)[0].encode() for name in ("demo_rift", "isic_full_rift", "fashion_dinov2_full")]
    place = finished.parent / "fuzzed.yaml"

    def read(content: bytes) -> None:
        place.write_bytes(content)
        recipes.load(str(place))

    check(read, contents, 900, "recipe")


@seed(0)
@settings(max_examples=300 * TIMES, deadline=None, suppress_health_check=list(HealthCheck), database=None)
@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats()
        | st.text(max_size=20)
        | st.sampled_from(["rift", "full", "digits"]),
        lambda inner: (
            st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=8), inner, max_size=6)
        ),
        max_leaves=20,
    )
)
def test_recipes_of_any_shape(value):
    try:
        recipes.parse(yaml.safe_dump(value, allow_unicode=True), "any.yaml", [])
    except RiftError as error:
        assert str(error)


def test_run_json(finished, tmp_path):
    from riftcli.runs.folder import read_run
    from riftcli.runs.listing import runs_below

    shutil.copytree(finished, tmp_path / "r")

    def read(content: bytes) -> None:
        (tmp_path / "r/run.json").write_bytes(content)
        runs_below(tmp_path)
        read_run(tmp_path / "r")

    check(read, [(finished / "run.json").read_bytes()], 400, "run.json", structured=True)


def test_metrics_jsonl(finished, tmp_path):
    from riftcli.runs.reader import read_rows

    (tmp_path / "r").mkdir()

    def read(content: bytes) -> None:
        (tmp_path / "r/metrics.jsonl").write_bytes(content)
        for row in read_rows(tmp_path / "r"):
            assert row["kind"] is not None and row["step"] >= 0

    check(read, [(finished / "metrics.jsonl").read_bytes()], 500, "metrics.jsonl")


@pytest.mark.parametrize("file", ["metrics.json", "knn"])
def test_reports(finished, tmp_path, file):
    from riftcli.evaluation.candidates import open_run
    from riftcli.report.card import write_card
    from riftcli.report.compare import compare
    from riftcli.report.records import record
    from riftcli.runs.listing import runs_below

    shutil.copytree(finished, tmp_path / "r")
    candidate = open_run(tmp_path / "r", [])
    place = tmp_path / "r/metrics.json" if file == "metrics.json" else next((tmp_path / "r/knn").glob("*/metrics.json"))

    def read(content: bytes) -> None:
        place.write_bytes(content)
        runs_below(tmp_path)
        compare([record(candidate)], [], None, False)
        write_card(tmp_path / "r")

    check(read, [place.read_bytes()], 400 if file == "metrics.json" else 200, file, structured=True)


def test_checkpoints(finished, tmp_path):
    """Manifest, state and tensors: what is damaged is set aside, whatever it is."""
    from riftcli.training import checkpoint

    newest = max((finished / "last").glob("step-????????"))
    for name, count in (("manifest.json", 150), ("state.json", 250), ("model.safetensors", 300)):

        def read(content: bytes, name: str = name) -> None:
            shutil.rmtree(tmp_path / "last", ignore_errors=True)
            (tmp_path / "last").mkdir()
            place = tmp_path / "last" / newest.name
            place.mkdir()
            for path in newest.iterdir():
                os.link(path, place / path.name)
            (place / name).unlink()
            (place / name).write_bytes(content)
            if name != "manifest.json":  # as somebody who signs what he has changed
                manifest = json.loads((newest / "manifest.json").read_text())
                manifest["sha256"][name] = checkpoint.sha256(place / name)
                (place / "manifest.json").unlink()
                (place / "manifest.json").write_text(json.dumps(manifest))
            checkpoint.load_newest(tmp_path / "last", lambda line: None)

        check(read, [(newest / name).read_bytes()], count, name, structured=name != "model.safetensors")


def test_weights(tmp_path, tiny_weights):
    from riftcli.models.backbone import Backbone
    from riftcli.models.loading import read_tensors, tensor_names

    small = save({"a": torch.arange(6.0).reshape(2, 3), "b.c": torch.ones(2, dtype=torch.int64)}, metadata={"format": "pt"})

    def read(content: bytes) -> None:
        (tmp_path / "x.safetensors").write_bytes(content)
        tensor_names(tmp_path / "x.safetensors")
        read_tensors(tmp_path / "x.safetensors")

    check(read, [small], 500, "safetensors")
    shutil.copytree(tiny_weights, tmp_path / "vit")
    (tmp_path / "vit/manifest.json").unlink()
    whole = (tmp_path / "vit/model.safetensors").read_bytes()

    def build(content: bytes) -> None:
        (tmp_path / "vit/model.safetensors").write_bytes(content + whole[6000:])
        Backbone(f"local-dir:{tmp_path / 'vit'}").build()

    check(build, [whole[:6000]], 60, "weights of a folder")


def test_configurations(tmp_path, tiny_weights):
    from riftcli.data.transforms import Preprocessing
    from riftcli.models.backbone import Backbone
    from riftcli.models.weights import read_config

    shutil.copytree(tiny_weights, tmp_path / "vit")
    (tmp_path / "vit/manifest.json").unlink()

    def read(content: bytes) -> None:
        (tmp_path / "vit/config.json").write_bytes(content)
        read_config(tmp_path / "vit")
        Preprocessing.of_model(Backbone(f"local-dir:{tmp_path / 'vit'}").build(), None)

    check(read, [(tiny_weights / "config.json").read_bytes()], 200, "config.json", structured=True)


def test_label_files(tmp_path):
    from riftcli.data.splits import load_split

    for i in range(6):
        Image.new("L", (4, 4), 40 * i).save(tmp_path / f"{i}.png")
    text = "image,label,patient,fold\n" + "".join(f"{i}.png,{i % 2},p{i // 2},{'train' if i < 4 else 'test'}\n" for i in range(6))
    data = {"format": "csv_table", "root": str(tmp_path), "labels": "labels.csv", "split_column": "fold", "label_column": "label"}
    recipe = recipes.parse(yaml.safe_dump({"model": {"name": "asset:demo_vit"}, "data": {**data, "val": None}}), "x.yaml", [])

    def read(content: bytes) -> None:
        (tmp_path / "labels.csv").write_bytes(content)
        load_split(recipe.data.source, recipe.data.train)

    check(read, [text.encode(), b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode()], 500, "labels")


def test_caption_files(tmp_path):
    from riftcli.data.splits import load_split

    root = flickr(tmp_path)
    path = next(path for path in root.rglob("*") if path.is_file() and path.suffix in (".csv", ".txt", ".json", ".token"))
    original = path.read_bytes()
    where = {"format": "captions", "root": str(root), "labels": {"train": str(path.relative_to(root))}}
    recipe = recipes.parse(
        yaml.safe_dump({"model": {"name": "asset:demo_vit"}, "data": {**where, "val": None, "test": None}}), "x.yaml", []
    )

    def read(content: bytes) -> None:
        path.write_bytes(content)
        load_split(recipe.data.source, recipe.data.train)

    check(read, [original], 200, "captions")


def test_images(tmp_path):
    from riftcli.data.images import read_image

    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    files = {}
    for kind in ("png", "jpeg", "bmp", "tiff", "webp", "ppm", "gif"):
        out = io.BytesIO()
        Image.fromarray(pixels).save(out, kind)
        files[kind] = out.getvalue()

    for kind, content in files.items():
        suffix = {"jpeg": "jpg", "tiff": "tif"}.get(kind, kind)

        def read(content: bytes, suffix: str = suffix) -> None:
            (tmp_path / f"x.{suffix}").write_bytes(content)
            image = read_image(tmp_path / f"x.{suffix}")
            assert image.mode == "RGB" and max(image.size) < 100_000

        check(read, [content], 130, kind)


def test_adapters(tmp_path):
    from riftcli.models.peft_format import read_adapter_config

    config = {
        "peft_type": "LORA",
        "r": 4,
        "lora_alpha": 8,
        "target_modules": ["qkv"],
        "alpha_pattern": {"blocks.0": 3},
        "bias": "none",
    }
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")

    def read(content: bytes) -> None:
        (tmp_path / "adapter_config.json").write_bytes(content)
        read_adapter_config(tmp_path)

    check(read, [json.dumps(config).encode()], 200, "adapter_config.json", structured=True)
