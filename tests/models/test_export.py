"""`rift export`: the file answers as ours does, at any batch size, alone; and a wrong one is found."""

from __future__ import annotations

import csv
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from riftcli.errors import EnvironmentError, ModelError
from riftcli.evaluation.candidates import open_run
from riftcli.models import export
from riftcli.models.export import Exported, compare, export_model

# What a person writes who has the file, onnxruntime, numpy and Pillow, and not riftcli.
ALONE = """
import json, sys
from pathlib import Path
import numpy as np, onnxruntime
from PIL import Image

session = onnxruntime.InferenceSession(sys.argv[1])
about = session.get_modelmeta().custom_metadata_map
classes, shown = json.loads(about["classes"]), json.loads(about["preprocessing"])
size = shown["input_size"][1]
batch, names = [], sorted(Path(sys.argv[2]).glob("*.png"))
for path in names:
    image = Image.open(path).convert("RGB")
    short = int(size / shown["crop_pct"])
    w, h = image.size
    w, h = (short, int(short * h / w)) if w <= h else (int(short * w / h), short)
    image = image.resize((w, h), Image.Resampling[shown["interpolation"].upper()])
    left, top = round((w - size) / 2), round((h - size) / 2)
    batch.append(np.asarray(image.crop((left, top, left + size, top + size))).transpose(2, 0, 1))
logits, features = session.run(["logits", "features"], {"images": np.stack(batch)})
assert features.shape[0] == len(batch)
shares = np.exp(logits - logits.max(1, keepdims=True))
shares /= shares.sum(1, keepdims=True)
print(json.dumps([[path.name, classes[int(row.argmax())], row.tolist()] for path, row in zip(names, shares)]))
print("riftcli" in sys.modules, "torch" in sys.modules, file=sys.stderr)
"""


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i, size in enumerate([(20, 16), (16, 16), (17, 40), (64, 48), (30, 31)]):
        pixels = np.random.default_rng(i).integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return folder


def test_onnxruntime_alone_classifies_a_folder_as_rift_predict_does(rift, run, pictures, tmp_path):
    pytest.importorskip("onnxruntime")
    code, _, err = rift("export", run, "--preprocess", "--out", tmp_path / "m.onnx")
    assert code == 0, err
    assert "logits and features differ from ours by " in err
    done = subprocess.run(
        [sys.executable, "-c", ALONE, str(tmp_path / "m.onnx"), str(pictures)], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.strip().splitlines()[-1] == "False False"
    code, out, err = rift("predict", run, pictures)
    assert code == 0, err
    rows = list(csv.DictReader(out.splitlines()))
    found = json.loads(done.stdout)
    assert [name for name, _, _ in found] == [row["path"].rpartition("/")[2] for row in rows]
    assert [label for _, label, _ in found] == [row["class"] for row in rows]
    for (_, _, shares), row in zip(found, rows, strict=True):
        assert shares == pytest.approx([float(row[key]) for key in row if key.startswith("p_")], abs=2e-6)


@pytest.mark.parametrize("kind", ["onnx", "torch_export"])
@pytest.mark.parametrize("method", ["rift", "lora"])
def test_every_format_answers_as_ours_at_sizes_that_it_was_not_made_with(trained, tmp_path, kind, method):
    if kind == "onnx":
        pytest.importorskip("onnxruntime")
    candidate = open_run(trained / method if method == "lora" else trained / method / "s0", [])
    loaded = candidate.load(torch.device("cpu"))
    out = tmp_path / f"m{export.SUFFIXES[kind]}"
    worst = export_model(loaded.classifier, loaded.preprocessing, {"classes": loaded.classes}, out, kind)
    assert worst <= export.TOLERANCE
    answer = (export.onnx_session if kind == "onnx" else export.torch_session)(out)
    images = torch.randn(7, *loaded.preprocessing.input_size)
    with torch.no_grad():
        torch.testing.assert_close(answer(images)[0], loaded.classifier(images).logits, rtol=1e-4, atol=1e-4)
    assert list(tmp_path.iterdir()) == [out], "no half-written file beside it"
    if kind == "torch_export":
        extra = {"about.json": ""}
        torch.export.load(out, extra_files=extra)
        assert json.loads(extra["about.json"])["classes"] == loaded.classes


def test_a_wrong_model_is_found_and_not_kept(run, tmp_path, monkeypatch):
    loaded = open_run(run, []).load(torch.device("cpu"))
    module = Exported(loaded.classifier, loaded.preprocessing, False).eval()
    with torch.no_grad():
        assert compare(module, module, loaded.preprocessing, False) == 0.0
        for wrong in (
            lambda images: [module(images)[0] * 1.001, module(images)[1]],
            lambda images: [module(images)[0], module(images)[1] * 1.001],
            lambda images: module(images.flip(3)),
            lambda images: [part * float("nan") for part in module(images)],
        ):
            with pytest.raises(ModelError, match="the exported model answers otherwise than ours"):
                compare(module, wrong, loaded.preprocessing, False)
        with pytest.raises(ModelError, match=r"gives \(1, 10\) logits for 3 images, ours \(3, 10\)"):
            compare(module, lambda images: module(images[:1]), loaded.preprocessing, False)
    right = export.torch_session
    monkeypatch.setattr(export, "torch_session", lambda path: lambda images: [part + 0.5 for part in right(path)(images)])
    with pytest.raises(ModelError):
        export_model(loaded.classifier, loaded.preprocessing, {}, tmp_path / "m.pt2", "torch_export")
    assert list(tmp_path.glob("*.pt2")) == list(tmp_path.glob(".*")) == []


def test_what_cannot_be_exported_is_one_line(rift, run, tmp_path, monkeypatch):
    (tmp_path / "there.onnx").touch()
    code, _, err = rift("export", run, "--out", tmp_path / "there.onnx")
    assert (code, err) == (2, f"error: {tmp_path}/there.onnx: exists; replace it with --overwrite, or choose another --out\n")
    code, _, err = rift("export", run, "--out", tmp_path / "no" / "m.onnx")
    assert (code, err) == (2, f"error: --out {tmp_path}/no/m.onnx: not a file that can be written; name another with --out\n")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    loaded = open_run(run, []).load(torch.device("cpu"))
    with pytest.raises(EnvironmentError) as caught:
        export_model(loaded.classifier, loaded.preprocessing, {}, tmp_path / "m.onnx", "onnx")
    assert str(caught.value) == "--format onnx needs the extra onnx (onnxscript): pip install 'riftcli[onnx]'"


def test_a_model_that_the_exporter_cannot_take_is_one_line(run, tmp_path, monkeypatch):
    loaded = open_run(run, []).load(torch.device("cpu"))

    def refuses(*args, **kwargs):
        raise RuntimeError("Could not guard on data-dependent expression\nand much more")

    monkeypatch.setattr(torch.export, "export", refuses)
    with pytest.raises(ModelError) as caught:
        export_model(loaded.classifier, loaded.preprocessing, {}, tmp_path / "m.pt2", "torch_export")
    assert str(caught.value) == (
        "--format torch_export: this model cannot be exported (RuntimeError: Could not guard on data-dependent expression); "
        "try --format onnx"
    )
