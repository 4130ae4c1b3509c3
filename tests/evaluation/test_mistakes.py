"""The most confident mistakes: found as a plain loop finds them, written with pictures, shown on the page."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from riftcli.evaluation.mistakes import worst
from riftcli.protocols import UNKNOWN, Predictions


def seen(logits: torch.Tensor, targets: torch.Tensor) -> Predictions:
    task = "multiclass" if targets.dim() == 1 else "multilabel"
    return Predictions(logits, targets, torch.zeros(len(logits), 2), [*"abc"], task)


def test_one_label_per_image():
    torch.manual_seed(0)
    logits, targets = torch.randn(50, 3), torch.randint(0, 3, (50,))
    shares = logits.double().softmax(1)
    expected = []
    for i in range(50):
        guess = int(shares[i].argmax())
        if guess != int(targets[i]):
            expected.append((i, "abc"[int(targets[i])], "abc"[guess], float(shares[i, guess])))
    expected.sort(key=lambda entry: -entry[3])
    assert worst(seen(logits, targets), 7) == expected[:7]
    assert worst(seen(logits, targets), 100) == expected
    assert worst(seen(logits, logits.argmax(1))) == []


def test_several_labels():
    torch.manual_seed(0)
    logits, targets = torch.randn(20, 3), torch.randint(0, 2, (20, 3)).to(torch.uint8)
    targets[3] = UNKNOWN
    expected = []
    for i in range(20):
        for c in range(3):
            share, truth = float(logits[i, c].double().sigmoid()), int(targets[i, c])
            if truth != UNKNOWN and (share > 0.5) != (truth == 1):
                names = ("abc"[c], "not " + "abc"[c])
                expected.append((i, names[truth == 0], names[truth == 1], max(share, 1 - share)))
    expected.sort(key=lambda entry: -entry[3])
    found = worst(seen(logits, targets), 100)
    assert [entry[:3] for entry in found] == [entry[:3] for entry in expected]
    assert [entry[3] for entry in found] == pytest.approx([entry[3] for entry in expected])


def test_a_run_shows_them_on_its_page(rift, run):
    assert rift("eval", "--run", run, "--split", "test")[0] == 0
    folder = next(run.glob("eval/*-test"))
    rows = list(csv.DictReader((folder / "mistakes.csv").read_text().splitlines()))
    answers = {row["id"]: row for row in csv.DictReader((folder / "predictions.csv").read_text().splitlines())}
    wrong = [row for row in answers.values() if row["target"] != row["predicted"]]
    assert len(rows) == min(12, len(wrong)) > 0
    for row in rows:
        assert (answers[row["id"]]["target"], answers[row["id"]]["predicted"]) == (row["target"], row["predicted"])
        assert (folder / row["picture"]).stat().st_size > 100
    assert rift("report", run, "--out", "page.html")[0] == 0
    page = Path("page.html").read_text()
    assert page.count("data:image/jpeg;base64,") == len(rows)
    assert "Wrong with most confidence" in page
    assert "<script>" not in page
    counts = json.loads((folder / "metrics.json").read_text())["confusion_matrix"]["counts"]
    named = [sum(row[c] for row in counts) for c in range(len(counts))]
    found = [(row[c] / sum(row), c) for c, row in enumerate(counts) if sum(row)]
    worst_first = [
        f'<th scope="row">{c}</th><td class="n">{sum(counts[c])}</td><td class="n">{share:.3f}</td>' for share, c in sorted(found)
    ]
    places = [page.index(row) for row in worst_first]
    assert places == sorted(places)
    assert all(f">{counts[c][c] / named[c]:.3f}</td></tr>" in page for c in range(len(counts)) if named[c])
    (folder / "mistakes.csv").unlink()  # a run of before
    assert rift("report", run, "--out", "page.html")[0] == 0
    assert "Wrong with most confidence" not in Path("page.html").read_text()


def test_deep_grey_images_are_shown_and_a_model_is_judged_where_its_own_data_is_not(rift, tiny_recipe, write_recipe, tmp_path):
    rng = np.random.default_rng(0)
    for i in range(40):
        place = tmp_path / "scans" / ("test" if i % 4 == 0 else "train") / "ab"[i // 4 % 2] / f"{i}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 4096, (20, 20)).astype("uint16")).save(place)
    tiny_recipe["data"] = {"format": "image_folder", "root": str(tmp_path / "scans"), "val": {"fraction": 0.3, "from": "train"}}
    tiny_recipe |= {"input": {"bit_depth": 12}, "regularizer": {"name": "none"}}
    tiny_recipe["train"] |= {"epochs": 1, "batch_size": 8}
    assert rift("finetune", "--recipe", write_recipe(tiny_recipe), "--out", "run")[0] == 0
    for split in ("val", "test"):
        code, _, err = rift("eval", "--run", "run", "--split", split)
        assert code == 0, err
        folder = next(Path("run/eval").glob(f"*-{split}"))
        rows = list(csv.DictReader((folder / "mistakes.csv").read_text().splitlines()))
        assert len(rows) == len(list(folder.glob("mistakes/*.jpg")))
    (tmp_path / "scans").rename(tmp_path / "elsewhere")
    tiny_recipe["data"]["root"] = str(tmp_path / "elsewhere")
    code, _, err = rift("clinical", "--run", "run", "--data", write_recipe(tiny_recipe, "other.yaml"), "--draws", "100")
    assert code == 0, err
    assert "warning: run: no thresholds of its validation images: " in err
