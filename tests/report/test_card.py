"""The model card that a finished run leaves beside its weights."""

from __future__ import annotations

import json

import pytest
from sklearn import metrics

from riftcli.report.card import BEGIN, card_text, plain, write_card
from riftcli.runs.confusion_matrix import cells_of


def test_a_run_leaves_a_card_with_its_data_results_and_limits(trained, read_json):
    run = trained / "rift" / "s0"
    card, report = (run / "model" / "README.md").read_text(), read_json(run / "metrics.json")
    for title in ("Intended use", "Data", "Results on 60 test images", "Per class", "What was kept of the pretrained model",
                  "Limits", "Provenance"):  # fmt: skip
        assert f"\n## {title}\n" in card
    assert 'timm.create_model("local-dir:PATH_TO_THIS_FOLDER", pretrained=True)' in card
    assert f"| accuracy | {report['metrics']['acc']['value']:.3f} | " in card
    assert f"weights sha256 `{report['model']['sha256']}`" in card
    kept = next(iter(report["retention"].values()))
    assert f"{kept['knn_before']:.3f} | {kept['knn_after']:.3f} |" in card
    assert "fewer than 20 images to measure on: 0, 1" in card
    assert "It is no medical device" in card


def test_writing_it_again_replaces_it(run):
    path = run / "model" / "README.md"
    before = path.read_text()
    write_card(run)
    assert path.read_text() == before
    (run / "clinical" / "digits-train").mkdir(parents=True)
    (run / "clinical" / "digits-train" / "metrics.json").write_text("{}")
    write_card(run)
    assert path.read_text() == before, "of other images"
    (run / "clinical" / "digits-test").mkdir(parents=True)
    (run / "clinical" / "digits-test" / "metrics.json").write_text(json.dumps({"settings": {"drawn": {"digits": "patient"}}}))
    write_card(run)
    after = path.read_text()
    assert after.count(BEGIN) == 1
    assert "`clinical/` in the run folder has intervals from draws of patients" in after
    assert list((run / "model").glob("*.tmp")) == []


def test_rates_of_a_class_are_scikit_learn_s():
    truth, guess = [0, 0, 0, 1, 1, 2, 2, 2, 2], [0, 1, 0, 1, 2, 2, 2, 0, 1]
    matrix = {"classes": ["a", "b", "c"], "counts": metrics.confusion_matrix(truth, guess).tolist()}
    for i, (tp, fp, fn, tn) in enumerate(cells_of(matrix).values()):
        is_it, said = [t == i for t in truth], [g == i for g in guess]
        assert [[tn, fp], [fn, tp]] == metrics.confusion_matrix(is_it, said).tolist()
    several = {"classes": ["a", "b"], "tp": [1, 2], "fp": [3, 4], "fn": [5, 6], "tn": [7, 8]}
    assert cells_of(several) == {"a": (1, 3, 5, 7), "b": (2, 4, 6, 8)}


@pytest.mark.parametrize("name", ["a|b", "<script>alert(1)</script>", "[x](http://e)", "**bold**", "two\nlines", "back\\slash"])
def test_names_are_names_and_no_markup(run, name):
    report = json.loads((run / "metrics.json").read_text())
    text = json.dumps(report).replace('"0"', json.dumps(name))
    card = card_text(json.loads(text))
    lines = [line for line in card.splitlines() if plain(name) in line and line.startswith("| ")]
    assert len(lines) == 2
    for line in lines:
        cells = line.replace("\\|", "").count("|")
        assert cells in (4, 7), line
    assert "<script>" not in card and "[x](http" not in card and "**bold**" not in card


def test_a_class_without_images_and_a_run_without_a_test_split():
    report = {
        "created": "2026-11-28T00:00:00Z", "metrics": {"acc": {"value": 0.5}, "auroc": {"value": None, "reason": "one class"}},
        "data": {"name": "x", "n": 4, "classes": ["a", "b"], "class_counts": {"a": 4, "b": 0}, "fingerprint": "f",
                 "chose_weights": True, "note": "no test"},
        "confusion_matrix": {"classes": ["a", "b"], "counts": [[2, 2], [0, 0]]},
        "env": {"riftcli": "0", "torch": "2", "timm": "1", "seed": 0, "device": "cpu"}, "model": {"sha256": "s"},
        "warnings": ["careful"],
    }  # fmt: skip
    card = card_text(report)
    assert "## Results on 4 validation images" in card
    assert "undefined (no such image)" in card
    assert "| undefined (one class) |" in card
    assert "- no test\n" in card and card.count("- careful") == 1
    assert "What was kept" not in card
