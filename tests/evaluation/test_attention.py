"""rift attention and rift predict."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from evaluation_runs import read

from riftcli.data.datasets.digits import Digits


def test_attention_before_and_after(rift, run):
    code, out, err = rift("attention", "--run", run, "--count", 3, "--json")
    assert code == 0, err
    rows = read(out)["rows"]
    assert len(rows) == 3
    assert all(0 < row["js_distance"] < 1 for row in rows)
    folder = run / "attention" / "digits-test"
    pictures = {"attention.png", "attention_heads.png", "attention_heads.csv"}
    assert {p.name for p in folder.iterdir()} == {"metrics.json", "table.csv", "maps.csv", *pictures}
    for name, count in (("maps", 1), ("attention_heads", 2)):
        cells = list(csv.DictReader((folder / f"{name}.csv").open()))
        assert len(cells) == 2 * 3 * count * 4, "two models, three images, the mean or two heads, four rows of patches"
        shares: dict[tuple, float] = {}
        for cell in cells:
            key = (cell["model"], cell["id"], cell.get("head"))
            shares[key] = shares.get(key, 0) + sum(float(cell[f"c{i}"]) for i in range(4))
        assert all(share == pytest.approx(1, abs=1e-5) for share in shares.values())


def test_attention_maps_are_the_softmax_of_the_class_token(tiny_weights):
    from riftcli.models.attention_maps import attention_maps
    from riftcli.models.backbone import Backbone

    vit = Backbone(f"local-dir:{tiny_weights}").build().eval()
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    fused = vit.blocks[-1].attn.fused_attn
    maps = attention_maps(vit, images)
    assert maps.shape == (2, 2, 4, 4)
    assert torch.allclose(maps.sum((2, 3)), torch.ones(2, 2))
    assert vit.blocks[-1].attn.fused_attn == fused
    with torch.no_grad():
        tokens = vit._pos_embed(vit.patch_embed(images))
        tokens = vit.blocks[0](vit.norm_pre(tokens))
        attn = vit.blocks[1].attn
        qkv = attn.qkv(vit.blocks[1].norm1(tokens)).reshape(2, 17, 3, 2, 16).permute(2, 0, 3, 1, 4)
        weights = (qkv[0][:, :, :1] @ qkv[1].transpose(-2, -1) * 16**-0.5).softmax(-1)[:, :, 0, 1:]
    assert torch.allclose(maps.flatten(2), weights / weights.sum(-1, keepdim=True), atol=1e-5)


def test_predict_gives_the_classes_of_the_evaluation(rift, run, tmp_path):
    from riftcli.data.holdout import limit

    samples = limit(Digits().load("test"), 60, 0)
    place = tmp_path / "pictures"
    place.mkdir()
    for i in range(5):
        samples.read(i).save(place / f"{i}.png")
    code, out, err = rift("predict", run, place, place / "3.png")
    assert code == 0, err
    rows = list(csv.DictReader(out.splitlines()))
    assert [Path(row["path"]).name for row in rows] == [f"{i}.png" for i in range(5)]
    known = {row["id"]: row for row in csv.DictReader((run / "eval" / "digits-test" / "predictions.csv").open())}
    for i, row in enumerate(rows):
        want = known[samples.ids[i]]
        assert row["class"] == want["predicted"]
        assert [float(row[f"p_{c}"]) for c in range(10)] == pytest.approx([float(want[f"p_{c}"]) for c in range(10)], abs=2e-6)
    code, _, err = rift("predict", run, place, "--out", "found.csv")
    assert (code, err) == (0, "predictions: found.csv (5 images)\n")
    assert (tmp_path / "found.csv").read_text().splitlines()[0].startswith("path,class,p_0,")


def test_predict_refuses_what_is_no_image(rift, run, tmp_path):
    (tmp_path / "empty").mkdir()
    extensions = ".bmp, .dcm, .dicom, .jpeg, .jpg, .pgm, .png, .ppm, .tif, .tiff, .webp"
    code, _, err = rift("predict", run, "empty")
    assert (code, err) == (3, f"error: empty: no image in this folder (looked for {extensions})\n")
    code, _, err = rift("predict", run, "nothing.png")
    assert (code, err) == (3, "error: nothing.png: no such file or folder\n")
    code, _, err = rift("predict", run, "empty", "--out", "no/such/place.csv")
    assert (code, err) == (2, "error: --out no/such/place.csv: not a file that can be written\n")
