"""Labels that nobody knows (data.uncertain: ignore): every metric, loss and table is as if they were not there."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from riftcli import catalog
from riftcli.data.batches import balancing_weights
from riftcli.evaluation.scores import confusion, reliability_rows, score
from riftcli.functional.calibration import fit_temperature
from riftcli.methods.objectives.bce import BinaryCrossEntropy
from riftcli.protocols import UNKNOWN, Predictions

NAMES = [name for name in catalog.names("metric") if not catalog.component("metric", name)().needs_pretrained and name != "knn"]


def seen(logits: torch.Tensor, targets: torch.Tensor, groups: list[str] | None = None) -> Predictions:
    classes = [f"c{c}" for c in range(logits.shape[1])]
    return Predictions(logits, targets, torch.zeros(len(logits), 2), classes, "multilabel", None, groups)


@pytest.fixture
def gappy() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    logits, targets = torch.randn(90, 4), torch.randint(0, 2, (90, 4)).to(torch.uint8)
    gaps = torch.rand(90, 4) < 0.3
    gaps[:, 3] = False
    gaps[5] = True
    gaps[5, 3] = False
    return logits, torch.where(gaps, UNKNOWN, targets).to(torch.uint8)


@pytest.mark.parametrize("name", NAMES)
def test_metrics_are_those_of_each_label_on_the_images_that_have_it(name, gappy):
    logits, targets = gappy
    groups = [str(i % 3) for i in range(90)] if name == "worst_group" else None
    found = score([name], seen(logits, targets, groups))[name]
    changed = torch.where(targets == UNKNOWN, -logits * 7, logits)  # what is said of an unknown label changes nothing
    assert score([name], seen(changed, targets, groups))[name] == found
    if name in ("kappa", "top5", "worst_group"):
        return
    alone = []
    for c in range(4):
        rows = targets[:, c] != UNKNOWN
        alone.append(score([name], seen(logits[rows, c : c + 1], targets[rows, c : c + 1]))[name]["value"])
    sizes = [int((targets[:, c] != UNKNOWN).sum()) for c in range(4)]
    by_cell = name in ("acc", "brier", "nll")  # a mean over all labels of all images; the others are means over labels
    assert found["value"] == pytest.approx(np.average(alone, weights=sizes if by_cell else None), abs=1e-6)


def test_losses_and_weights_leave_them_out(gappy):
    logits, targets = gappy
    for reduction in ("sum_classes", "mean"):
        objective = BinaryCrossEntropy(reduction=reduction, class_weights="balanced").build(targets, 4)
        for c in range(4):
            own = targets[:, c]
            assert float(objective.class_weights[c]) == pytest.approx(float((own == 0).sum() / (own == 1).sum()))
        losses = objective.losses(logits, targets)
        for i in range(90):
            known = [c for c in range(4) if targets[i, c] != UNKNOWN]
            each = [
                float(
                    F.binary_cross_entropy_with_logits(logits[i, c], targets[i, c].float(), pos_weight=objective.class_weights[c])
                )
                for c in known
            ]
            assert float(losses[i]) == pytest.approx(sum(each) / (1 if reduction == "sum_classes" else len(known)), rel=1e-5)
    moving = logits.clone().requires_grad_(True)
    objective.losses(moving, targets).sum().backward()
    assert ((moving.grad == 0) == (targets == UNKNOWN)).all()
    rows = torch.tensor([[1, 0], [0, 0], [0, 0], [UNKNOWN, 0], [UNKNOWN, UNKNOWN]], dtype=torch.uint8)
    assert balancing_weights(rows).tolist() == [1.0, 0.5, 0.5, 0.5, 0.0], "an image of which little is known is not a healthy one"
    assert fit_temperature(logits, targets) == fit_temperature(torch.where(targets == UNKNOWN, 9.0, logits), targets)


@pytest.mark.parametrize("name", NAMES)
def test_a_label_that_is_never_known_and_none_that_is(name, gappy):
    logits, targets = gappy
    targets = targets.clone()
    targets[:, 1] = UNKNOWN
    groups = ["g"] * 90 if name == "worst_group" else None
    found = score([name], seen(logits, targets, groups))[name]
    assert name in ("kappa", "top5") or found["value"] is not None
    if "undefined_classes" in found:
        assert found["undefined_classes"] == ["c1"]
    nothing = score([name], seen(logits, torch.full_like(targets, UNKNOWN), groups))[name]
    assert nothing["value"] is None
    assert "logits" not in nothing["reason"]


def test_tables_count_what_is_known(gappy):
    logits, targets = gappy
    cells = confusion(seen(logits, targets))
    for c in range(4):
        assert sum(cells[key][c] for key in ("tp", "fp", "fn", "tn")) == int((targets[:, c] != UNKNOWN).sum())
    assert sum(row["count"] for row in reliability_rows(seen(logits, targets))) == int((targets != UNKNOWN).sum())


@pytest.fixture(scope="module")
def chest(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("chest")
    rng = np.random.default_rng(0)
    with (root / "labels.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "edema", "mass"])
        for i in range(60):
            Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)).save(root / f"{i}.png")
            writer.writerow([f"{i}.png", ["1", "0", "-1", ""][i % 4], ["1", "0", "-1"][i % 3]])
    return root


def test_a_run_trains_evaluates_and_is_judged_as_a_test(rift, tiny_recipe, write_recipe, chest):
    tiny_recipe["data"] = {
        "format": "csv_table", "root": str(chest), "labels": {"all": "labels.csv"}, "task": "multilabel",
        "label_columns": ["edema", "mass"], "uncertain": "ignore", "train": "all",
        "val": {"fraction": 0.2, "from": "all"}, "test": {"fraction": 0.3, "from": "all"},
    }  # fmt: skip
    tiny_recipe |= {"objective": {"name": "bce", "class_weights": "balanced"}, "regularizer": {"name": "none"}}
    tiny_recipe["train"] |= {"epochs": 1, "batch_size": 16, "sampler": "balanced"}
    tiny_recipe["eval"] |= {"metrics": ["acc", "map", "ece"], "best": "map"}
    code, _, err = rift("finetune", "--recipe", write_recipe(tiny_recipe), "--out", "run")
    assert code == 0, err
    report = json.loads(Path("run/metrics.json").read_text())
    rows = list(csv.DictReader(next(Path("run/eval").glob("*/predictions.csv")).open()))
    unknown = sum(row["target_edema"] == "" for row in rows)
    matrix = report["confusion_matrix"]
    assert unknown > 0
    assert sum(matrix[key][0] for key in ("tp", "fp", "fn", "tn")) == len(rows) - unknown
    code, out, err = rift("clinical", "--run", "run", "--draws", "100", "--json")
    assert code == 0, err
    edema = next(row for row in json.loads(out)["rows"] if row["class"] == "edema" and row["measure"] == "auroc")
    assert edema["positives"] + edema["negatives"] == len(rows) - unknown
    tiny_recipe["data"] |= {"task": "multiclass"}
    tiny_recipe["objective"] = {"name": "cross_entropy"}
    code, _, err = rift("recipes", "validate", write_recipe(tiny_recipe))
    assert (code, "uncertain: one label per image cannot be ignored; use zero, or leave those rows out" in err) == (2, True)
