"""Strength rules: the arithmetic of each, and runs that end where they were told to."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from riftcli.methods.strengths.gradient_ratio import GradientRatio
from riftcli.methods.strengths.target_similarity import TargetSimilarity


def rows(run: str, kind: str) -> list[dict]:
    return [row for row in map(json.loads, Path(run, "metrics.jsonl").read_text().splitlines()) if row["kind"] == kind]


# ---- the ratio of the gradients


def test_the_ratio_is_of_sums_over_the_first_steps():
    control = GradientRatio(ratio=0.5, steps=3).begin(100)
    assert [control.due(step) for step in (1, 3, 4)] == [True, True, False]
    for task, term in ((2.0, 0.0), (3.0, 1.0)):
        control.update(0.0, 1.0, (task, term))
        assert control.strength == 1.0
    control.update(0.0, 1.0, (4.0, 2.0))
    assert control.strength == pytest.approx(0.5 * 9 / 3)
    assert control.outcome(None) == {"rule": {"ratio": 0.5}, "strength": control.strength, "note": None}
    other = GradientRatio(ratio=0.5, steps=3).begin(100)
    other.load_state_dict(json.loads(json.dumps(control.state_dict())))
    assert other.strength == control.strength


def test_a_run_fixes_its_strength_by_what_it_measured(rift, tiny_recipe, write_recipe):
    tiny_recipe["regularizer"] = {"name": "rift", "q": "procrustes", "strength": {"ratio": 0.25, "steps": 3}}
    code, _, err = rift("finetune", "--recipe", write_recipe(tiny_recipe), "--out", "r")
    assert code == 0, err
    seen = rows("r", "strength")
    assert len(seen) == 3
    assert seen[0]["penalty_gradient"] < 0.02 * seen[2]["penalty_gradient"], "nothing has moved in the very first step"
    expected = 0.25 * sum(row["task_gradient"] for row in seen) / sum(row["penalty_gradient"] for row in seen)
    assert [row["strength"] for row in rows("r", "step")] == [1.0, 1.0, 1.0] + [pytest.approx(expected)] * 5
    report = json.loads(Path("r/metrics.json").read_text())
    assert report["strength"]["strength"] == pytest.approx(expected)
    assert report["model"]["method"]["strength"] == {"ratio": 0.25}


# ---- the wanted similarity


def test_the_controller_follows_its_documented_rule():
    rule = TargetSimilarity(keep=0.8)
    control = rule.begin(400)
    assert (control.every_steps, control.strength) == (10, 1.0)
    assert [control.wanted(s, 0.0) for s in (0.0, 0.15, 0.3, 1.0)] == pytest.approx([1.0, 0.9, 0.8, 0.8])
    assert control.wanted(0.5, 1.0) == pytest.approx(1 - 0.2 * 1.5)
    row = control.update(0.15, 0.8, (0.84,))
    error = (0.86 - 0.84) / 0.2
    assert control.strength == pytest.approx(math.exp(2 * error + 40 * error * 10 / 400))
    assert row == {"strength": control.strength, "cka_debiased": 0.84, "wanted": pytest.approx(0.86)}
    before = control.strength
    control.update(0.16, 0.8, (0.5,))
    assert control.strength == pytest.approx(4 * before), "one update changes it by a factor of 4 at most"
    for k in range(50):
        control.update(0.2 + k / 100, 0.5, (0.1,))
    assert control.strength == 10
    for k in range(50):
        control.update(0.2 + k / 100, 0.5, (1.0,))
    assert control.strength == pytest.approx(1e-3)


@pytest.mark.parametrize("scatter", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("keep", [0.7, 0.8, 0.95])
def test_it_settles_on_a_process_that_answers_slowly(keep, scatter):
    """A first-order process in log strength: similarity drifts to 1 / (1 + 0.3 / strength) at the pace of the learning rate,
    and large steps scatter around that, by a share of the distance that goes with the rate.
    """
    control = TargetSimilarity(keep=keep).begin(400)
    similarity, spent = 1.0, 0.0
    for step in range(1, 401):
        rate = 0.5 * (1 + math.cos(math.pi * step / 400))
        spent += rate / 200
        goal = 1 / (1 + 0.3 / control.strength)
        similarity += 15 * rate / 200 * (goal - similarity)
        measured = 1 - (1 - similarity) * (1 + scatter * rate)
        if control.due(step):
            control.update(min(1.0, spent), rate, (measured,))
    assert abs(measured - keep) < 0.02
    assert control.outcome(measured)["reached"]


def test_what_stood_in_the_way_is_said():
    rule = TargetSimilarity(keep=0.9)
    control = rule.begin(100)
    assert control.outcome(0.91)["note"] is None
    assert control.outcome(0.95)["note"] == (
        "strength keep 0.9: ended at a CKA of 0.950, more than wished: a higher optim.lr or more epochs would use the freedom"
    )
    assert control.outcome(0.5)["note"] == (
        "strength keep 0.9: ended at a CKA of 0.500 at strength 1: too few steps to settle; lower optim.lr, or more epochs"
    )
    control.strength = rule.most
    assert control.outcome(0.5)["note"] == (
        "strength keep 0.9: ended at a CKA of 0.500 with the strength at its limit 10: this regularizer cannot keep more here; "
        "lower optim.lr"
    )
    control.strength = 1e-3
    assert "more than wished even with next to no regularizer" in control.outcome(0.95)["note"]
    assert control.outcome(None)["note"].endswith("ended at a CKA of undefined: the features are constant")


@pytest.mark.page
@pytest.mark.parametrize("regularizer", [{"name": "rift", "q": "procrustes"}, {"name": "rsc"}])
def test_a_run_ends_at_the_similarity_that_was_asked_for(rift, tiny_recipe, write_recipe, regularizer):
    tiny_recipe["regularizer"] = {**regularizer, "strength": {"keep": 0.9}}
    tiny_recipe["optim"] = {"lr": 3e-3}
    tiny_recipe["train"] |= {"epochs": 15, "batch_size": 16}
    path = write_recipe(tiny_recipe)
    code, _, err = rift("finetune", "--recipe", path, "--out", "steered")
    assert code == 0, err
    report = json.loads(Path("steered/metrics.json").read_text())["strength"]
    last = rows("steered", "eval")[-1]["cka_debiased"]
    assert report["cka_debiased"] == last
    assert abs(last - 0.9) <= 0.02, report
    assert report["reached"] and report["note"] is None
    assert f"  strength keep 0.9: {report['strength']:.3g} at the end, CKA on validation {last:.3f}" in err.splitlines()
    assert report["cka_debiased_of_kept_weights"] >= 0.88
    moved = [row["strength"] for row in rows("steered", "strength")]
    assert len(moved) == 40 and len(set(moved)) > 10
    free = ["--set", "regularizer={name: none}", "--set", "eval.metrics=[acc, cka_debiased]", "--set", "eval.best=acc"]
    assert rift("finetune", "--recipe", path, "--out", "free", *free)[0] == 0
    assert rows("free", "eval")[-1]["cka_debiased"] < 0.8, "without steering it would not be there"
    assert "strength" in Path("steered/plots/curves.csv").read_text().splitlines()[0]


def test_a_wish_that_cannot_be_met_is_one_line_and_the_nearest_weights_are_kept(rift, tiny_recipe, write_recipe):
    tiny_recipe["regularizer"] = {"name": "rift", "q": "procrustes", "strength": {"keep": 0.999, "most": 1.0}}
    tiny_recipe["optim"] = {"lr": 1e-2}
    code, _, err = rift("finetune", "--recipe", write_recipe(tiny_recipe), "--out", "r")
    assert code == 0, err
    warnings = [line for line in err.splitlines() if line.startswith("warning: strength keep 0.999: ended at a CKA of 0.")]
    assert len(warnings) == 1
    assert "with the strength at its limit 1" in warnings[0]
    report = json.loads(Path("r/metrics.json").read_text())
    assert not report["strength"]["reached"]
    assert report["validation"]["cka_debiased"] < 0.979


@pytest.mark.parametrize(
    ("regularizer", "changes", "message"),
    [
        ({"name": "rift", "strength": {"kept": 0.9}}, {}, "expected a number, or one rule, e.g. {keep: 0.9}, got a mapping"),
        ({"name": "rift", "strength": {"keep": 0.9, "ratio": 1.0}}, {}, "expected a number, or one rule"),
        ({"name": "rift", "strength": {"keep": 1.5}}, {}, "regularizer.strength.keep: must be between 0 and 1, got 1.5"),
        ({"name": "rift", "strength": {"keep": 0.9, "sample": 5}}, {}, "unknown key (did you mean 'samples'?)"),
        ({"name": "none", "strength": {"keep": 0.9}}, {}, "regularizer.strength: none has no strength to choose"),
        ({"name": "rsc", "hcs_lambda": 0.5, "strength": {"keep": 0.9}}, {}, "regularizer.hcs_lambda: is a strength, and"),
        ({"name": "rift", "strength": {"keep": 0.9}}, {"adapter": {"name": "linear"}}, "this adapter freezes the backbone"),
        (
            {"name": "l2sp", "strength": {"ratio": 1.0}},
            {},
            "and l2sp acts on the weights",
        ),
        ({"name": "rift", "strength": {"ratio": -1.0}}, {}, "regularizer.strength.ratio: must be above 0, got -1.0"),
    ],
)
def test_rules_that_make_no_sense_are_refused(rift, tiny_recipe, write_recipe, regularizer, changes, message):
    tiny_recipe |= {"regularizer": regularizer, **changes}
    code, _, err = rift("finetune", "--recipe", write_recipe(tiny_recipe), "--out", "r")
    assert code == 2
    assert message in err
    assert not Path("r").exists()


def test_keep_needs_validation_images(rift, tiny_recipe, write_recipe):
    tiny_recipe["data"]["val"] = None
    code, _, err = rift("finetune", "--recipe", write_recipe(tiny_recipe), "--set", "regularizer.strength.keep=0.9")
    assert code == 2
    assert "regularizer.strength: keep is measured on validation images: set data.val" in err


def test_a_collapsed_run_stops_with_what_helps(rift, tiny_recipe, write_recipe):
    tiny_recipe["regularizer"] = {"name": "rift", "normalize": "raw", "strength": 0.001}
    tiny_recipe["optim"] = {"lr": 0.3, "weight_decay": 0.0}
    tiny_recipe["train"] |= {"epochs": 40, "seed": 1}  # which collapses within ten steps, before roundings matter
    path = write_recipe(tiny_recipe)
    code, _, err = rift("finetune", "--recipe", path, "--out", "r")
    assert code == 7, err
    line = next(line for line in err.splitlines() if line.startswith("error: "))
    assert "for 3 logged steps: nothing is left to keep; the run ends. What helps: " in line
    assert line.endswith("; train.on_collapse warn goes on all the same")
    assert "train.head_init" not in line
    assert "regularizer.normalize relative" in line
    ratios = [row["trace_ratio"] for row in rows("r", "step")]
    assert all(ratio is None or ratio < 0.01 or ratio > 100 for ratio in ratios[-3:])
    assert len(ratios) < 160, "long before the end"
    assert json.loads(Path("r/run.json").read_text())["status"] == "failed"
    code, _, err = rift("finetune", "--recipe", path, "--out", "on", "--set", "train.on_collapse=warn", "--set", "train.epochs=8")
    assert code in (0, 7)
    assert "nothing is left to keep" not in err
