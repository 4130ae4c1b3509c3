"""Thousands of classes: no table has a cell for every pair of them, and no page a line for each."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn import metrics as sk

from riftcli import catalog
from riftcli.data.split import Split
from riftcli.evaluation import scores
from riftcli.protocols import Predictions
from riftcli.report import card, page
from riftcli.runs.confusion_matrix import cells_of

COUNT, N = 600, 900


@pytest.fixture(scope="module")
def seen() -> Predictions:
    """900 images of 600 classes, a third of them right."""
    generator = torch.Generator().manual_seed(0)
    targets = torch.randint(0, COUNT, (N,), generator=generator)
    logits = torch.randn(N, COUNT, generator=generator)
    logits[torch.arange(N), targets] += 2.5
    return Predictions(logits, targets, torch.zeros(N, 1), [f"c{i}" for i in range(COUNT)], "multiclass")


def test_the_cells_that_are_not_zero_say_the_same(seen, monkeypatch):
    many = scores.confusion(seen)
    assert "counts" not in many and len(many["cells"]) <= N and sum(cell[2] for cell in many["cells"]) == N
    monkeypatch.setattr(scores, "MANY", COUNT)
    every = scores.confusion(seen)
    assert every["counts"] == sk.confusion_matrix(seen.targets, seen.logits.argmax(1), labels=range(COUNT)).tolist()
    assert cells_of(many) == cells_of(every)


def test_predictions_name_the_five_likeliest(seen, tmp_path):
    split = Split("test", [str(i) for i in range(N)], seen.targets.numpy(), seen.classes, read=lambda i: None)
    with (tmp_path / "p.csv").open("w") as file:
        scores.write_cells(file, scores._prediction_lines(split, seen))
    rows = list(csv.DictReader((tmp_path / "p.csv").open()))
    probabilities = seen.logits.double().softmax(1)
    assert len(rows) == N and [row["id"] for row in rows] == split.ids
    for i in (0, 17, N - 1):
        order = probabilities[i].argsort(descending=True)[:5].tolist()
        assert [rows[i][f"class_{k}"] for k in range(1, 6)] == [f"c{c}" for c in order]
        assert rows[i]["predicted"] == f"c{order[0]}" and rows[i]["target"] == f"c{int(seen.targets[i])}"
        wanted = [*probabilities[i, order].tolist(), float(probabilities[i, seen.targets[i]])]
        assert [float(rows[i][name]) for name in ("p_1", "p_2", "p_3", "p_4", "p_5", "p_target")] == pytest.approx(
            wanted, abs=1e-6
        )


def test_metrics_are_scikit_learn_s(seen, monkeypatch):
    monkeypatch.setattr("riftcli.evaluation.metrics.many_classes.CELLS", 100 * COUNT)  # in parts
    found = scores.score(["top5", "bacc", "f1", "kappa", "nll", "brier"], seen)
    truth, guess, every = seen.targets.numpy(), seen.logits.argmax(1).numpy(), range(COUNT)
    probabilities = seen.logits.double().softmax(1).numpy()
    one_hot = np.eye(COUNT)[truth]
    there = np.unique(truth)
    wanted = {
        "top5": sk.top_k_accuracy_score(truth, probabilities, k=5, labels=every),
        "bacc": sk.recall_score(truth, guess, labels=there, average="macro"),
        "f1": sk.f1_score(truth, guess, labels=np.union1d(truth, guess), average="macro"),
        "kappa": sk.cohen_kappa_score(truth, guess, labels=every, weights="quadratic"),
        "nll": sk.log_loss(truth, probabilities, labels=every),
        "brier": float(((probabilities - one_hot) ** 2).sum(1).mean()),
    }
    assert {name: entry["value"] for name, entry in found.items()} == pytest.approx(wanted, abs=1e-9)
    few = Predictions(seen.logits[:, :5], seen.targets % 5, seen.features, ["a"] * 5, "multiclass")
    assert scores.score(["top5"], few)["top5"]["reason"] == "no more than five classes"
    several = Predictions(seen.logits, torch.zeros(N, COUNT), seen.features, seen.classes, "multilabel")
    assert catalog.component("metric", "top5")().compute(several)["value"] is None


def test_of_equal_classes_the_first_count():
    """As with the predicted class; a network that collapsed gives every class the same."""
    names = [f"c{i}" for i in range(COUNT)]
    flat = Predictions(torch.zeros(4, COUNT), torch.tensor([0, 4, 5, 599]), torch.zeros(4, 1), names, "multiclass")
    assert scores.score(["top5"], flat)["top5"]["value"] == 0.5
    split = Split("test", [*"abcd"], flat.targets.numpy(), names, read=lambda i: None)
    header, *lines = scores._prediction_lines(split, flat)
    assert all(dict(zip(header, line, strict=True))["class_1"] == "c0" for line in lines)
    assert all(line[4::2] == names[:5] and line[2] == "c0" for line in lines)
    nothing = Predictions(flat.logits[:0], flat.targets[:0], flat.features[:0], names, "multiclass")
    assert len(list(scores._prediction_lines(split.take([]), nothing))) == 1


@pytest.mark.page
def test_a_run_of_many_classes_has_a_report_a_page_and_a_card(rift, tiny_recipe, write_recipe, monkeypatch):
    """As if ten were many."""
    monkeypatch.setattr(scores, "MANY", 5)
    monkeypatch.setattr(card, "MANY", 4)
    monkeypatch.setattr(page, "MOST_ROWS", 3)
    tiny_recipe["train"]["epochs"] = 1
    tiny_recipe["eval"]["metrics"] = ["acc", "top5", "bacc"]
    assert rift("finetune", "--recipe", write_recipe(tiny_recipe), "--out", "r")[0] == 0
    report = json.loads(Path("r/metrics.json").read_text())
    assert report["metrics"]["acc"]["value"] < report["metrics"]["top5"]["value"] < 1
    assert sum(count for _, _, count in report["confusion_matrix"]["cells"]) == report["data"]["n"]
    assert Path("r/eval/digits-test/confusion_matrix.csv").read_text().startswith("true,predicted,images\n")
    text = Path("r/model/README.md").read_text()
    assert "It puts an image into one of these classes: 0, 1, 2, ... and 7 more (label_names in config.json)." in text
    assert "The 4 of 10 classes that were found least." in text
    assert "\n128 images of 10 classes were trained on: " in text and " images a class; measured on " in text
    code, _, err = rift("report", "r")
    assert code == 0, err
    html = Path("r/report.html").read_text()
    assert "10 classes, those found least first, 3 of them" in " ".join(html.split()) and "top-5 accuracy" in html
    code, out, err = rift("compare", "r")
    assert code == 0 and "top5" in out + err
